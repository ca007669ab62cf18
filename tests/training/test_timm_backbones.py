"""A transformer and a convolutional network of timm with random weights, from training to the exported file."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from command_line import anomaly, rows_of
from PIL import Image
from shared_run import texture, with_defect
from timm_models import CONVNEXT, VIT, weights_of

from anomaly_cli.detector.checkpoint import load_model
from anomaly_cli.images.decode import load_image
from anomaly_cli.scoring.pixels import to_tensor

# Pixels, as asked for and as rounded to patches; 196 has a small copy, 128 has none, for its export takes long.
SIZES = {VIT: (192, 196), CONVNEXT: (128, 128)}
FORMS = [(192, 192), (240, 144), (130, 260)]  # (height, width)
SCALES = {
    VIT: ["block_2", "block_3", "block_4", "block_5", "image", "small", "coarse"],
    CONVNEXT: ["4", "8", "16", "image", "coarse"],
}
NORMALS, INCOMING, ANOMALOUS = 9, 6, 3


@dataclass(frozen=True)
class Run:
    """A model on a network of timm.

    Attributes:
        name: of the network.
        folder: holds `normal`, `incoming`, and `model.safetensors`; the weights file is gone.
        stderr: of the training.
    """

    name: str
    folder: Path
    stderr: str

    @property
    def side(self) -> int:
        return SIZES[self.name][1]

    @property
    def model(self) -> Path:
        return self.folder / "model.safetensors"


@pytest.fixture(scope="module", autouse=True)
def alone() -> Iterator[None]:
    """No network, and float32 as in exported files."""

    def refuse(*args: Any, **kwargs: Any) -> socket.socket:
        raise OSError("network is unreachable")

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANOMALY_FLOAT32", "1")
        patch.setenv("ANOMALY_DEVICE", "cpu")
        patch.setattr(socket, "create_connection", refuse)
        yield


@pytest.fixture(scope="module", params=[VIT, CONVNEXT])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("timm")
    rng = np.random.default_rng(5)
    for kind, count in (("normal", NORMALS), ("incoming", INCOMING)):
        (folder / kind).mkdir()
        for i in range(count):
            pixels = texture(rng, *FORMS[i % len(FORMS)])
            anomalous = kind == "incoming" and i < ANOMALOUS
            Image.fromarray(with_defect(rng, pixels) if anomalous else pixels).save(folder / kind / f"{i}.png")
    weights = weights_of(request.param, folder)
    settings = (
        "--image-size",
        str(SIZES[request.param][0]),
        "--prototypes",
        "40",
        "--backbone",
        request.param,
        "--weights",
        weights,
    )
    result = anomaly("train", folder / "normal", "-m", folder / "model.safetensors", *settings)
    assert result.exit_code == 0, result.stderr
    weights.unlink()
    return Run(request.param, folder, result.stderr)


def table_of(run: Run) -> list[dict[str, str]]:
    result = anomaly("score", run.folder / "incoming", "-m", run.model, "--out", "-", "-q")
    assert result.exit_code == 0, result.stderr
    return rows_of(result.stdout_bytes)


def test_training_says_size_in_pixels_and_megabytes(run: Run) -> None:
    megabytes = run.model.stat().st_size / 1e6
    lines = run.stderr.splitlines()

    assert f"learned normal from {NORMALS} images at {run.side} px with the {run.name} backbone" in lines
    assert lines[-1] == f"saved {run.model} ({megabytes:.0f} MB); next: anomaly score DIR --out scores.csv"


def test_scales_are_columns_and_what_is_anomalous_comes_first(run: Run) -> None:
    rows = table_of(run)

    assert {Path(row["path"]).stem for row in rows[:ANOMALOUS]} == {"0", "1", "2"}
    assert [key for key in rows[0] if key.startswith("scale_")] == [f"scale_{name}" for name in SCALES[run.name]]
    assert all(float(value) > 0 for row in rows for key, value in row.items() if key.startswith("scale_"))


def test_the_region_is_where_the_defect_is(run: Run) -> None:
    worst = table_of(run)[0]
    pixels = np.asarray(Image.open(worst["path"]), float)
    y, x = np.argwhere(np.ptp(pixels, axis=2) > 100).mean(axis=0)  # normal images are gray, but for the noise

    left, top, width, height = (int(worst[f"region_{key}"]) for key in "xywh")

    assert left - 14 <= x < left + width + 14
    assert top - 14 <= y < top + height + 14


def test_heat_maps_are_drawn(run: Run, tmp_path: Path) -> None:
    result = anomaly("heatmap", run.folder / "incoming", "-m", run.model, "--out", tmp_path, "-q")

    assert result.exit_code == 0, result.stderr
    assert len(list(tmp_path.rglob("*.png"))) == INCOMING


# Of the convolutional network the export of torchvision's is a test; each takes half a minute.
@pytest.mark.parametrize("run", [VIT], indirect=True)
def test_the_exported_file_scores_alike_at_every_form(run: Run, tmp_path: Path) -> None:
    assert anomaly("export", run.model, "--out", tmp_path / "out.onnx").exit_code == 0
    session = onnxruntime.InferenceSession(tmp_path / "out.onnx", providers=["CPUExecutionProvider"])
    config = load_model(run.model).config

    for row in table_of(run):
        pixels = to_tensor(load_image(Path(row["path"]), config.image_size, step=config.size_step)).numpy()
        (score,) = session.run(["score"], {"images": pixels})[0]
        assert score == pytest.approx(float(row["score"]), abs=2e-3)


def test_info_names_network_version_and_size(run: Run) -> None:
    told = anomaly("info", run.model).stdout

    assert f"size          {run.model.stat().st_size / 1e6:.1f} MB, network included\n" in told
    assert f"settings      backbone {run.name}, image_size {run.side}," in told
    assert f", timm {version('timm')}\n" in told


def test_an_update_keeps_the_network_and_takes_new_images(run: Run, tmp_path: Path) -> None:
    grown = tmp_path / "grown.safetensors"

    result = anomaly("update", run.model, run.folder / "incoming" / "4.png", "--out", grown)

    assert result.exit_code == 0, result.stderr
    assert anomaly("score", run.folder / "incoming", "-m", grown, "--out", "-", "-q").exit_code == 0


def masks_of(images: Path, folder: Path) -> Path:
    """Draw for each image a mask of its part below and right of the centre, where no defect lies."""
    folder.mkdir()
    for path in images.iterdir():
        with Image.open(path) as image:
            mask = np.zeros((image.height, image.width), np.uint8)
        mask[image.height // 2 :, image.width // 2 :] = 255
        Image.fromarray(mask).save(folder / path.name)
    return folder


def test_only_a_region_of_interest_is_inspected(run: Run, tmp_path: Path) -> None:
    weights, model = weights_of(run.name, tmp_path), tmp_path / "part.safetensors"
    settings = ("--image-size", str(SIZES[run.name][0]), "--prototypes", "40", "--backbone", run.name)
    normal, incoming = (masks_of(run.folder / kind, tmp_path / kind) for kind in ("normal", "incoming"))
    trained = anomaly("train", run.folder / "normal", "-m", model, *settings, "--weights", weights, "--roi", normal)
    assert trained.exit_code == 0, trained.stderr

    scored = anomaly("score", run.folder / "incoming", "-m", model, "--out", "-", "-q", "--roi", incoming)

    rows = rows_of(scored.stdout_bytes)
    assert len(rows) == INCOMING
    for row in rows:
        assert int(row["region_x"]) >= int(row["width"]) // 2 - 14
        assert int(row["region_y"]) >= int(row["height"]) // 2 - 14


def test_tiles_do_not_go_with_a_transformer(tmp_path: Path) -> None:
    (tmp_path / "normal").mkdir()
    for i in range(8):
        Image.fromarray(texture(np.random.default_rng(i), 64, 64)).save(tmp_path / "normal" / f"{i}.png")
    options = ("--backbone", VIT, "--weights", weights_of(VIT, tmp_path), "--smallest-defect", "20")

    result = anomaly("train", tmp_path / "normal", "-m", tmp_path / "none.safetensors", *options)

    assert result.exit_code == 2
    assert result.stderr == (
        f"error: --smallest-defect does not go with {VIT}: each cell of a transformer depends on all of its tile\n"
    )


def test_without_timm_the_model_says_what_to_install(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anomaly_cli.detector.backbones.timm_networks.find_spec", lambda _: None)

    result = anomaly("score", run.folder / "incoming", "-m", run.model, "--out", "-")

    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        f"error: {run.model} cannot be read: unknown backbone {run.name}: use embedded, scratch or a "
        "torchvision classification model such as resnet18; for models of timm such as dinov2: "
        "pip install 'anomaly-cli[backbones]'\n"
    )
