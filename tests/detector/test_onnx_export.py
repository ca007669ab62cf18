"""Exported files: onnxruntime gives the scores and maps of the command line, for images of any size."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from command_line import anomaly, rows_of
from networks import random_model, saved
from numpy.typing import NDArray
from PIL import Image
from shared_run import CONFIG, SETTINGS, Trained, texture, with_defect
from torch import Tensor, nn

from anomaly_cli.config import Effort
from anomaly_cli.detector.checkpoint import load_model
from anomaly_cli.detector.onnx_export import KEY, OPSET, describe, export, make_onnx, reduced_copy
from anomaly_cli.detector.scales import COPY_SIDES, SMALL_SCALE, TURNED_SCALE, reduction
from anomaly_cli.errors import ConfigError
from anomaly_cli.images.decode import load_image
from anomaly_cli.images.network_size import landscape_sizes, network_size
from anomaly_cli.scoring.pixels import to_tensor
from anomaly_cli.training import stage1

PAGE = Path(__file__).parents[2] / "docs" / "export.md"
SIDE = 192  # pixels; the smallest size that has a small copy
FORMS = [(192, 192), (240, 144), (192, 192), (144, 240), (96, 450), (450, 96)]  # (height, width)


@pytest.fixture(scope="module", autouse=True)
def float32() -> Iterator[None]:
    """Compute in float32, as exported files do, also where the processor has bfloat16."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANOMALY_FLOAT32", "1")
        yield


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of several forms, and a model that has both reduced copies and labelled anomalies, exported."""
    folder = tmp_path_factory.mktemp("shapes")
    rng = np.random.default_rng(5)
    for kind, count in (("normal", 12), ("known", 6), ("incoming", 12)):
        (folder / kind).mkdir()
        for i in range(count):
            pixels = texture(rng, *FORMS[i % len(FORMS)])
            anomalous = kind == "known" or (kind == "incoming" and i < 6)
            Image.fromarray(with_defect(rng, pixels) if anomalous else pixels).save(folder / kind / f"{i:02}.png")
    settings = (
        "--backbone",
        "scratch",
        "--image-size",
        str(SIDE),
        "--prototypes",
        "50",
        "--effort",
        "quick",
        "--device",
        "cpu",
    )
    model = folder / "anomaly.safetensors"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(stage1.SCRATCH_STEPS, Effort.QUICK, 8)
        # After eight steps nothing is known yet, and the turned copies would have no weight.
        patch.setattr(stage1, "turn_information", lambda *_: 0.5)
        result = anomaly("train", folder / "normal", "-m", model, "--anomalies", folder / "known", *settings)
    assert result.exit_code == 0, result.stderr
    result = anomaly("export", model)
    assert (result.exit_code, result.stdout) == (0, ""), result.stderr
    megabytes = (folder / "anomaly.onnx").stat().st_size / 1e6
    assert (
        result.stderr == f"exported {folder}/anomaly.onnx: {megabytes:.1f} MB, for images of about 192 x 192 pixels\n"
    )
    return folder


def session(path: Path) -> Any:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def pixels_of(path: Path, image_size: int) -> NDArray[np.float32]:
    return to_tensor(load_image(path, image_size)).numpy()


def description(path: Path) -> dict[str, Any]:
    (entry,) = onnx.load(path).metadata_props
    assert entry.key == KEY
    values: dict[str, Any] = json.loads(entry.value)
    return values


def assert_same_scores(onnx_path: Path, model: Path, images: Path) -> None:
    """Compare with the table of the command line, file by file."""
    running, size = session(onnx_path), load_model(model).config.image_size
    rows = rows_of(anomaly("score", images, "-m", model, "--out", "-", "-q", "--device", "cpu").stdout_bytes)
    assert len(rows) > 8
    for row in rows:
        (score,) = running.run(["score"], {"images": pixels_of(Path(row["path"]), size)})[0]
        assert score == pytest.approx(float(row["score"]), abs=1e-3)


def test_images_of_every_form_and_labelled_anomalies_get_the_same_scores(shapes: Path) -> None:
    model = load_model(shapes / "anomaly.safetensors")
    sizes = {pixels_of(path, SIDE).shape for path in (shapes / "incoming").iterdir()}

    assert model.detector.deviation_names[-6:] == ("image", "small", "turned", "learned", "coarse", "known")
    assert (model.calibration.weights[-6:] > 0).all()
    assert len(sizes) == len(set(FORMS))
    assert_same_scores(shapes / "anomaly.onnx", shapes / "anomaly.safetensors", shapes / "incoming")


def test_a_torchvision_backbone_scores_alike(trained: Trained, tmp_path: Path) -> None:
    weights = saved(random_model("squeezenet1_1").state_dict(), tmp_path / "weights.safetensors")
    model = tmp_path / "squeezed.safetensors"
    arguments = ("--backbone", "squeezenet1_1", "--weights", weights, "--device", "cpu")
    assert anomaly("train", trained.folder / "normal", "-m", model, *SETTINGS, *arguments).exit_code == 0

    report = export(model, tmp_path / "out.onnx")

    assert report.size == report.out.stat().st_size
    assert_same_scores(tmp_path / "out.onnx", model, trained.folder / "incoming")


def test_maps_are_those_that_heatmap_saves_before_they_are_raised_to_the_score(shapes: Path, tmp_path: Path) -> None:
    arguments = ("-m", shapes / "anomaly.safetensors", "--out", tmp_path, "--raw", "npy", "--device", "cpu", "-q")
    assert anomaly("heatmap", shapes / "incoming", *arguments).exit_code == 0
    running = session(shapes / "anomaly.onnx")

    saved_maps = sorted(tmp_path.rglob("*.npy"))

    assert len(saved_maps) == 12
    for path in saved_maps:
        image = shapes / "incoming" / path.name.removesuffix(".map.npy")
        (anomaly_map,), (score,) = running.run(["anomaly_map", "score"], {"images": pixels_of(image, SIDE)})
        drawn = np.load(path)
        if anomaly_map.max() >= score:
            np.testing.assert_allclose(anomaly_map, drawn, atol=1e-3)
        else:
            assert (drawn >= anomaly_map - 1e-3).all()
            assert drawn.max() == pytest.approx(score, abs=1e-3)


def test_a_batch_scores_as_its_images_alone(shapes: Path) -> None:
    running = session(shapes / "anomaly.onnx")
    batch = np.concatenate([pixels_of(shapes / "incoming" / f"{i:02}.png", SIDE) for i in (0, 2, 6, 8)])

    maps, scores = running.run(["anomaly_map", "score"], {"images": batch})

    assert (maps.shape, scores.shape) == ((4, 24, 24), (4,))
    for each, anomaly_map, score in zip(batch, maps, scores, strict=True):
        alone = running.run(["anomaly_map", "score"], {"images": each[None]})
        np.testing.assert_allclose(alone[0][0], anomaly_map, atol=1e-4)
        np.testing.assert_allclose(alone[1][0], score, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "expected_factors"), [(SMALL_SCALE, {1, 2, 3, 4, 5}), (TURNED_SCALE, {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11})]
)
def test_a_reduced_copy_is_the_average_pooling_of_the_detector(name: str, expected_factors: set[int]) -> None:
    model = onnx.helper.make_model(reduced_copy(name), opset_imports=[onnx.helper.make_opsetid("", OPSET)])
    model.ir_version = 8
    running = onnxruntime.InferenceSession(model.SerializeToString())
    sizes = [size for image_size in (96, 256, 384, 512, 640) for size in [*landscape_sizes(image_size)][::3]]
    factors = set()

    for height, width in [*sizes, *((width, height) for height, width in sizes)]:
        images = torch.rand(1, 3, height, width)
        (small,) = running.run(None, {"images": images.numpy()})
        factors.add(by := reduction(height, width, COPY_SIDES[name]))
        expected: Tensor = F.avg_pool2d(images, by)
        np.testing.assert_allclose(small, expected.numpy(), atol=1e-5)

    assert factors == expected_factors


def test_the_file_is_valid_and_its_sizes_have_names(shapes: Path) -> None:
    running = session(shapes / "anomaly.onnx")
    interface = [(each.name, each.shape, each.type) for each in (*running.get_inputs(), *running.get_outputs())]

    assert interface == [
        ("images", ["N", 3, "H", "W"], "tensor(float)"),
        ("anomaly_map", ["N", "map_h", "map_w"], "tensor(float)"),
        ("score", ["N"], "tensor(float)"),
    ]
    onnx.checker.check_model(shapes / "anomaly.onnx", full_check=True)
    assert [each.version for each in onnx.load(shapes / "anomaly.onnx").opset_import if each.domain == ""] == [18]


def test_the_file_says_what_it_is_and_what_to_feed_it(shapes: Path) -> None:
    model = load_model(shapes / "anomaly.safetensors")

    values = description(shapes / "anomaly.onnx")

    assert values["version"] == version("anomaly-cli")
    assert values["limit"] == 1.0
    assert values["config"]["backbone"] == "scratch"
    assert values["config"]["image_size"] == SIDE
    assert values["provenance"]["images"] == model.provenance.images
    assert values["normal_scores"] == pytest.approx(model.calibration.normal_scores.tolist(), abs=1e-6)
    assert (values["input"]["colours"], values["input"]["range"]) == ("RGB", [0, 1])


@pytest.mark.parametrize("image_size", [64, 256])
def test_the_nearest_of_the_listed_sizes_is_the_one_that_score_uses(trained: Trained, image_size: int) -> None:
    model = replace(load_model(trained.model), config=replace(CONFIG, image_size=image_size))
    sizes = describe(model)["input"]["sizes"]

    for height, width in [(480, 640), (640, 480), (100, 100), (1, 30), (3000, 200), (1080, 1920), (333, 77)]:
        nearest = min(sizes, key=lambda size: abs(np.log(size[1] / size[0] * height / width)))
        assert tuple(nearest) == network_size(height, width, image_size)


def test_the_example_of_the_page_runs_without_torch(shapes: Path) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.S)
    code = f"import sys; sys.modules['torch'] = None\n{block}"

    result = subprocess.run([sys.executable, "-c", code], cwd=shapes, capture_output=True, text=True, check=False)

    assert result.returncode == 0, result.stderr
    printed = {path: float(score) for score, path in (line.split(maxsplit=1) for line in result.stdout.splitlines())}
    table = rows_of(
        anomaly("score", shapes / "incoming", "-m", shapes / "anomaly.safetensors", "--out", "-", "-q").stdout_bytes
    )
    expected = {os.path.relpath(row["path"], shapes): float(row["score"]) for row in table}
    assert printed == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("missing", ["onnx", "onnxscript"])
def test_a_missing_library_is_one_line(here: Path, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    monkeypatch.setitem(sys.modules, missing, None)

    result = anomaly("export")

    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr == "error: export needs onnx and onnxscript: pip install 'anomaly-cli[onnx]'\n"


def test_an_output_that_cannot_be_written_is_refused_before_the_work(here: Path) -> None:
    result = anomaly("export", "--out", "nowhere/out.onnx")

    assert result.exit_code == 1
    assert result.stderr == "error: cannot write nowhere/out.onnx: no such folder: nowhere\n"


def test_a_missing_model_is_named(here: Path) -> None:
    result = anomaly("export", "gone.safetensors")

    assert result.exit_code == 1
    assert result.stderr == "error: no model file at gone.safetensors: make one with `anomaly train NORMAL_DIR`\n"


def test_a_network_whose_course_depends_on_the_pixels_is_refused(trained: Trained) -> None:
    class Moody(nn.Module):
        def forward(self, x: Tensor) -> list[Tensor]:
            return [x, x] if float(x.sum()) > 0 else [x]

    model = load_model(trained.model)
    model.detector.backbone.network = Moody()

    with pytest.raises(ConfigError, match=r"^backbone embedded cannot be translated to ONNX: [^\n]+$"):
        make_onnx(model)
