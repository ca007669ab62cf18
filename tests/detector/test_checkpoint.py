"""Model files: what was saved comes back exactly, and whatever happened to a file is one line, never wrong numbers."""

from __future__ import annotations

import ast
import json
import os
import pickle
import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load, save, save_file
from shared_run import CONFIG, Trained
from torch import Tensor

from anomaly_cli.detector import checkpoint
from anomaly_cli.detector.checkpoint import FORMAT, KEY, Model, load_model, read_header, save_model
from anomaly_cli.errors import CheckpointError
from anomaly_cli.scoring.measure import Measured, Scorer
from anomaly_cli.training import train as training

FLIPS = 40  # bits flipped in the header, and as many in the tensors
Header = dict[str, Any]


@pytest.fixture(scope="module")
def content(trained: Trained) -> bytes:
    return trained.model.read_bytes()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def header_end(content: bytes) -> int:
    return 8 + int(struct.unpack("<Q", content[:8])[0])


def taken_apart(content: bytes) -> tuple[Header, dict[str, Tensor]]:
    document = json.loads(content[8 : header_end(content)])
    return json.loads(document["__metadata__"][KEY]), load(content)


def put_together(header: Header, state: dict[str, Tensor], *, signed: bool) -> bytes:
    if signed:
        header = {name: value for name, value in header.items() if name != "digest"}
        header["digest"] = checkpoint._digest(header, state)
    return save(state, {KEY: json.dumps(header)})


def refusal(path: Path) -> str:
    """Message with which both ways to read a model file refuse it."""
    with pytest.raises(CheckpointError) as loading:
        load_model(path)
    message = str(loading.value)
    assert message.count(os.fspath(path)) == 1
    assert "\n" not in message
    return message.replace(os.fspath(path), "FILE")


def measurements(model: Model, folder: Path) -> list[Measured]:
    paths = sorted((folder / "incoming").glob("*.*g"))
    results = Scorer(model, [torch.device("cpu")]).measure(paths)
    return [result for result in results if isinstance(result, Measured)]


NOT_A_MODEL = "FILE is not a model file, or was cut short"
DAMAGED = f"FILE {checkpoint.DAMAGED}"


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


# Damage


@pytest.mark.parametrize("share", [0.0001, 0.001, 0.1, 0.5, 0.9, 0.9999])
def test_a_file_that_was_cut_short_is_refused(file: Path, content: bytes, share: float) -> None:
    file.write_bytes(content[: int(len(content) * share)])

    assert refusal(file) == NOT_A_MODEL


@pytest.mark.parametrize("place", [-1, 0, 1])
def test_a_file_cut_at_the_end_of_its_header_or_of_itself_is_refused(file: Path, content: bytes, place: int) -> None:
    file.write_bytes(content[: header_end(content) + place])
    assert refusal(file) == NOT_A_MODEL

    file.write_bytes(content[:-1] if place < 0 else content + b"\0")
    assert refusal(file) == NOT_A_MODEL


def test_a_flipped_bit_anywhere_is_noticed(file: Path, content: bytes) -> None:
    rng = np.random.default_rng(0)
    end = header_end(content)
    places = [*range(8), *rng.integers(8, end, FLIPS).tolist(), *rng.integers(end, len(content), FLIPS).tolist()]
    file.write_bytes(content)
    original = read_header(file)

    for place in [*places, end, len(content) - 1]:
        flipped = content[place] ^ 1 << int(rng.integers(8))
        _overwrite(file, place, flipped)
        with suppress(CheckpointError):
            unnoticed = read_header(file)
            # In the header, 1e-05 may have become 1E-05.
            assert (place < end, unnoticed) == (True, original)
        _overwrite(file, place, content[place])
    assert file.read_bytes() == content


def _overwrite(path: Path, place: int, value: int) -> None:
    with path.open("r+b") as stream:
        stream.seek(place)
        stream.write(bytes([value]))


def test_a_block_of_zeros_as_after_a_power_cut_is_noticed(file: Path, content: bytes) -> None:
    middle = len(content) // 2
    file.write_bytes(content[:middle] + bytes(4096) + content[middle + 4096 :])

    assert refusal(file) == DAMAGED


def test_tensors_that_swap_their_names_are_noticed(file: Path, content: bytes) -> None:
    header, state = taken_apart(content)
    first, second = (f"scales.stride_{name}.cell_mean" for name in header["scales"][:2])
    state[first], state[second] = state[second], state[first]
    file.write_bytes(put_together(header, state, signed=False))

    assert refusal(file) == DAMAGED


def _set(*keys: str | int, to: object) -> Callable[[Header], None]:
    def edit(header: Header) -> None:
        inner: Any = header
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = to

    return edit


EDITS: dict[str, Callable[[Header], object]] = {
    "config": _set("config", "image_size", to=128),
    "seed": _set("config", "seed", to=1),
    "calibration": _set("calibration", "normal_deviations", 0, 0, to=0.5),
    "limit": _set("calibration", "score_unit", "limit", to=0.5),
    "map unit": _set("map_unit", "limit", to=9.0),
    "origin": _set("provenance", "images", to=1000),
    "addition": _set("more", to=1),
    "digest": _set("digest", to="0" * 64),
    "no digest": lambda header: header.pop("digest"),
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edited_header_is_noticed(file: Path, content: bytes, name: str) -> None:
    header, state = taken_apart(content)
    EDITS[name](header)
    file.write_bytes(put_together(header, state, signed=False))

    assert refusal(file) == DAMAGED


HOSTILE: dict[str, Callable[[Header], object]] = {
    "size out of range": _set("config", "image_size", to=10**9),
    "unknown setting": _set("config", "colour", to="red"),
    "unknown effort": _set("config", "effort", to="none"),
    "settings as a list": _set("config", to=[]),
    "no settings": lambda header: header.pop("config"),
    "unknown backbone": _set("config", "backbone", to="resnet17"),
    "another backbone": _set("config", "backbone", to="squeezenet1_1"),
    "backbone of no text": _set("config", "backbone", to=None),
    "no scale": _set("scales", to=[]),
    "a scale too few": lambda header: header["scales"].pop(),
    "unknown scale": _set("scales", to=["8", "nowhere"]),
    "scales as a number": _set("scales", to=3),
    "no calibration": _set("calibration", to=None),
    "calibration in words": _set("calibration", "location", to=["many"]),
    "no normal deviation": _set("calibration", "normal_deviations", to=[]),
    "normal deviations of another detector": _set("calibration", "normal_deviations", to=[[0.5, 0.5]]),
    "a normal deviation of zero": _set("calibration", "normal_deviations", 0, 0, to=0.0),
    "calibration of another length": _set("calibration", "spread", to=[1.0]),
    "no unit": lambda header: header.pop("map_unit"),
    "a unit of no number": _set("calibration", "score_unit", "median", to=None),
    "a unit of no size": _set("map_unit", "limit", to=-9.0),
    "a unit without end": _set("calibration", "scale_units", 0, "limit", to=float("inf")),
    "no spread": _set("calibration", "spread", 0, to=0.0),
    "a location that is no number": _set("calibration", "location", 0, to=float("nan")),
    "a negative weight": _set("calibration", "weights", 0, to=-1.0),
    "an origin of another kind": _set("provenance", "suspects", to=[]),
    "origin incomplete": lambda header: header["provenance"].pop("images"),
}


@pytest.mark.parametrize("name", ["no spread", "an origin of another kind", "no calibration", "scales as a number"])
def test_a_signed_header_that_fits_no_detector_is_not_described(file: Path, content: bytes, name: str) -> None:
    header, state = taken_apart(content)
    HOSTILE[name](header)
    file.write_bytes(put_together(header, state, signed=True))

    with pytest.raises(CheckpointError) as reading:
        read_header(file)
    assert str(reading.value).replace(os.fspath(file), "FILE") == DAMAGED


@pytest.mark.parametrize("name", HOSTILE)
def test_a_signed_header_that_fits_no_detector_is_refused(file: Path, content: bytes, name: str) -> None:
    header, state = taken_apart(content)
    HOSTILE[name](header)
    file.write_bytes(put_together(header, state, signed=True))

    assert refusal(file) == DAMAGED


@pytest.mark.parametrize("change", ["missing", "added", "shape", "empty"])
def test_signed_tensors_that_fit_no_detector_are_refused(file: Path, content: bytes, change: str) -> None:
    header, state = taken_apart(content)
    name = "scales.stride_8.memory.prototypes"
    if change == "missing":
        del state[name]
    elif change == "added":
        state["one.more"] = torch.ones(1)
    else:
        state[name] = state[name][:, :-1].contiguous() if change == "shape" else state[name][:0].contiguous()
    file.write_bytes(put_together(header, state, signed=True))

    assert refusal(file) == DAMAGED


TORN: dict[str, Callable[[dict[str, Tensor]], object]] = {
    "no ends": lambda state: state.pop("patches.8.ends"),
    "no content": lambda state: state.pop("patches.image.content"),
    "a scale of their own": lambda state: state.update({"patches.4.ends": torch.ones(1, dtype=torch.int64)}),
    "one too few": lambda state: state.update({"patches.8.ends": state["patches.8.ends"][1:].clone()}),
    "cut short": lambda state: state.update({"patches.16.content": state["patches.16.content"][:-1].clone()}),
    "other numbers": lambda state: state.update({"patches.16.content": state["patches.16.content"].float()}),
}


@pytest.mark.parametrize("name", TORN)
def test_signed_thumbnails_that_fit_no_prototypes_are_refused(file: Path, content: bytes, name: str) -> None:
    header, state = taken_apart(content)
    TORN[name](state)
    file.write_bytes(put_together(header, state, signed=True))

    with pytest.raises(CheckpointError) as loading:
        load_model(file)
    assert str(loading.value).replace(os.fspath(file), "FILE") == DAMAGED


def test_a_model_without_thumbnails_is_whole(file: Path, content: bytes, trained: Trained) -> None:
    header, state = taken_apart(content)
    bare = {name: value for name, value in state.items() if not name.startswith(checkpoint.PATCHES)}
    file.write_bytes(put_together(header, bare, signed=True))

    model = load_model(file)

    assert model.patches == {}
    before, after = measurements(load_model(trained.model), trained.folder), measurements(model, trained.folder)
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one.deviations, other.deviations)
