"""Model files: what was saved comes back exactly, and whatever happened to a file is one line, never wrong numbers."""

from __future__ import annotations

import ast
import os
import pickle
import struct
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from model_files import NOT_A_MODEL, put_together, refusal, taken_apart
from safetensors.torch import save, save_file
from shared_run import CONFIG, Trained

from anomaly_cli.detector import checkpoint
from anomaly_cli.detector.checkpoint import FORMAT, FORMATS_BEFORE, KEY, Model, load_model, read_header, save_model
from anomaly_cli.scoring.measure import Measured, Scorer
from anomaly_cli.training import train as training


def measurements(model: Model, folder: Path) -> list[Measured]:
    paths = sorted((folder / "incoming").glob("*.*g"))
    results = Scorer(model, [torch.device("cpu")]).measure(paths)
    return [result for result in results if isinstance(result, Measured)]


# What was saved comes back


def test_a_loaded_model_measures_and_scores_like_the_one_that_was_trained(
    trained_again: training.TrainReport, trained: Trained
) -> None:
    loaded = load_model(trained_again.model_path)

    before, after = measurements(trained_again.model, trained.folder), measurements(loaded, trained.folder)

    assert len(before) == len(after) == 8
    for one, other in zip(before, after, strict=True):
        # Not to the last bit: the file keeps values, not the order in memory that a matrix product depends on.
        np.testing.assert_allclose(one.anomaly_map, other.anomaly_map, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(one.deviations, other.deviations, rtol=1e-6)
        scores = [model.calibration.scores(one.deviations[None])[0] for model in (trained_again.model, loaded)]
        assert scores[0] == scores[1]


def test_a_model_that_was_saved_again_measures_exactly_the_same(trained: Trained, loaded: Model, file: Path) -> None:
    save_model(loaded, file)

    before, after = measurements(loaded, trained.folder), measurements(load_model(file), trained.folder)

    assert len(before) == len(after) == 8
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one.anomaly_map, other.anomaly_map)
        np.testing.assert_array_equal(one.deviations, other.deviations)


def test_a_loaded_model_knows_its_settings_origin_and_calibration(trained_again: training.TrainReport) -> None:
    loaded, original = load_model(trained_again.model_path), trained_again.model

    assert loaded.config == original.config == CONFIG
    assert loaded.provenance == original.provenance
    assert loaded.map_scale == original.map_scale
    assert loaded.detector.scale_names == original.detector.scale_names
    for name, value in asdict(original.calibration).items():
        np.testing.assert_equal(asdict(loaded.calibration)[name], value)


def test_saving_a_loaded_model_gives_the_same_bytes(loaded: Model, content: bytes, file: Path) -> None:
    save_model(loaded, file)

    assert file.read_bytes() == content


def test_any_file_name_and_any_link_will_do(trained: Trained, tmp_path: Path) -> None:
    odd = tmp_path / os.fsdecode(b"mod\xe9l\n1")
    odd.symlink_to(trained.model)

    assert read_header(odd)["format"] == FORMAT


# Files that are no models


@pytest.mark.parametrize("name", ["gone.safetensors", "gone/model.safetensors", "file/model.safetensors"])
def test_a_missing_file_says_how_to_make_one(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()

    expected = "no model file at FILE: make one with `anomaly train NORMAL_DIR`"
    assert refusal(tmp_path / name) == expected


def test_a_folder_and_a_pipe_are_no_model_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")

    assert refusal(tmp_path) == "FILE is not a model file"
    assert refusal(tmp_path / "pipe") == "FILE is not a model file"


def test_a_name_that_is_too_long_is_one_line(tmp_path: Path) -> None:
    assert refusal(tmp_path / ("x" * 300)) == "cannot read FILE: File name too long"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0",
        b"\0" * 8,
        b"\0" * 1000,
        b"only words, and enough of them to be read as a header of some length",
        b"\x89PNG\r\n\x1a\n" + bytes(100),
        struct.pack("<Q", 2) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 4) + b"null",
        struct.pack("<Q", 0),
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 2**64 - 1) + b"{}",
        struct.pack("<Q", 90_000_000) + b"{}",
        struct.pack("<Q", 200_000) + b"[" * 200_000,
        struct.pack("<Q", 200_000) + b'{"a":' * 40_000,
    ],
)
def test_foreign_bytes_are_no_model_file(file: Path, data: bytes) -> None:
    file.write_bytes(data)

    assert refusal(file) in (NOT_A_MODEL, "FILE is not a model of `anomaly train`")


def test_weights_of_somebody_else_are_no_model(file: Path) -> None:
    save_file({"weight": torch.ones(3)}, file, {"format": "pt"})

    assert refusal(file) == "FILE is not a model of `anomaly train`"


@pytest.mark.parametrize("document", ["", "no JSON", "[" * 100_000, '{"a":' * 100_000, '{"format": 1', "\udcff"])
def test_a_document_that_is_no_json_is_no_model_file(file: Path, document: str) -> None:
    file.write_bytes(save({"weight": torch.ones(3)}, {KEY: document.encode("utf-8", "replace").decode()}))

    assert refusal(file) == NOT_A_MODEL


@pytest.mark.parametrize("document", ["[]", "null", "1", "{}", '{"format": null}', '{"format": "1"}'])
def test_a_document_without_a_known_format_is_another_format(file: Path, document: str) -> None:
    file.write_bytes(save({"weight": torch.ones(3)}, {KEY: document}))

    assert refusal(file).startswith("FILE has model format ")


def test_the_model_of_another_version_says_what_to_do(file: Path, content: bytes) -> None:
    header, state = taken_apart(content)
    file.write_bytes(put_together({**header, "format": FORMAT + 1}, state, signed=True))

    expected = f"FILE has model format {FORMAT + 1}, this version reads {FORMAT}; train the detector again"
    assert refusal(file) == expected


@pytest.mark.parametrize("number", FORMATS_BEFORE)
def test_a_model_of_a_format_before_is_read_but_for_scratch(file: Path, content: bytes, number: int) -> None:
    header, state = taken_apart(content)
    before = {**header, "format": number}
    file.write_bytes(put_together(before, state, signed=True))
    assert load_model(file).config.backbone == "embedded"

    for config in ({**header["config"], "backbone": "scratch"}, None):
        file.write_bytes(put_together({**before, "config": config}, state, signed=True))
        expected = f"FILE has model format {number}, this version reads {FORMAT}; train the detector again"
        assert refusal(file) == expected


def test_a_pickle_is_refused_and_not_run(file: Path, tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
            return os.mkdir, (os.fspath(tmp_path / "run"),)

    file.write_bytes(pickle.dumps(Hostile()))
    torch.save({"weight": torch.ones(3)}, tmp_path / "torch.pt")

    assert refusal(file) == NOT_A_MODEL
    assert refusal(tmp_path / "torch.pt") == NOT_A_MODEL
    assert not (tmp_path / "run").exists()


def test_the_module_knows_no_pickle() -> None:
    source = Path(checkpoint.__file__).read_text("utf-8")

    names = {ast.unparse(node) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name | ast.Attribute)}
    assert not names & {"torch.load", "torch.save", "pickle", "eval", "exec"}
    assert "import pickle" not in source


def test_a_model_without_thumbnails_is_whole(file: Path, content: bytes, trained: Trained) -> None:
    header, state = taken_apart(content)
    bare = {name: value for name, value in state.items() if not name.startswith(checkpoint.PATCHES)}
    file.write_bytes(put_together(header, bare, signed=True))

    model = load_model(file)

    assert model.patches == {}
    before, after = measurements(load_model(trained.model), trained.folder), measurements(model, trained.folder)
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one.deviations, other.deviations)
