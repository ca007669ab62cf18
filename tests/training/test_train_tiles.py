"""`--smallest-defect`: large pictures read in tiles, from training to the page."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from command_line import anomaly, rows_of
from numpy.typing import NDArray
from PIL import Image
from shared_run import texture

from anomaly_cli.detector import tiles
from anomaly_cli.detector.checkpoint import load_model
from anomaly_cli.training import stage2

SIDE = 480  # pixels of most files, two tiles across
SPECK = 8  # pixels
TOLD = 16  # as the smallest defect: pictures are read at their own size
NORMALS = 8


def speck(pixels: NDArray[np.uint8], top: int, left: int) -> NDArray[np.uint8]:
    """Draw a bright red speck."""
    changed = pixels.copy()
    changed[top : top + SPECK, left : left + SPECK] = (255, 30, 30)
    return changed


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures larger than a tile, a model of them, and one with a region of interest."""
    folder = tmp_path_factory.mktemp("tiles")
    rng = np.random.default_rng(0)
    for name in ("normal", "incoming", "odd"):
        (folder / name).mkdir()
    for i in range(NORMALS):
        Image.fromarray(texture(rng, SIDE, SIDE)).save(folder / "normal" / f"{i}.png")
    for i in range(2):
        Image.fromarray(texture(rng, SIDE, SIDE)).save(folder / "incoming" / f"good{i}.png")
    Image.fromarray(speck(texture(rng, SIDE, SIDE), 100, 404)).save(folder / "incoming" / "bad0.png")
    Image.fromarray(speck(texture(rng, SIDE, SIDE), 331, 235)).save(folder / "incoming" / "bad1.png")
    Image.fromarray(texture(rng, 40, 320)).save(folder / "odd" / "strip.png")
    Image.fromarray(texture(rng, 1, 1)).save(folder / "odd" / "pixel.png")
    Image.fromarray(texture(rng, 50, 60)).save(folder / "odd" / "small.png")
    Image.fromarray(texture(rng, 600, 350)).save(folder / "odd" / "tall.png")
    mask = np.full((24, 24), 255, np.uint8)
    mask[:, 14:] = 0
    Image.fromarray(mask).save(folder / "roi.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "TILE", 384)
        patch.setattr(stage2, "SYNTHETIC_DEFECTS", 8)
        patch.chdir(folder)
        patch.setenv("ANOMALY_DEVICE", "cpu")
        common = ("--image-size", "64", "--prototypes", "50", "--smallest-defect", str(TOLD))
        result = anomaly("train", "normal", *common, "--model", "m.safetensors", "--audit-normals", "audit.csv")
        assert result.exit_code == 0, result.stderr
        (folder / "said").write_text(result.stderr)
        result = anomaly("train", "normal", *common, "--model", "roi.safetensors", "--roi", "roi.png", "--quiet")
        assert result.exit_code == 0, result.stderr
        assert result.stderr == ""
    return folder


@pytest.fixture
def here(work: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(work)
    monkeypatch.setenv("ANOMALY_DEVICE", "cpu")
    monkeypatch.setattr(tiles, "TILE", 384)
    return work


def rows(*arguments: str) -> dict[str, dict[str, str]]:
    result = anomaly("score", *arguments, "--out", "-", "--quiet")
    assert result.exit_code == 0, result.stderr
    return {Path(row["path"]).name: row for row in rows_of(result.stdout_bytes)}


def test_the_cost_is_said_before_the_run(here: Path) -> None:
    said = (here / "said").read_text().splitlines()

    pattern = r"480 x 480 px: 4 tiles an image, about [0-9.e+-]+ s each on this machine"
    assert re.fullmatch(pattern, said[0])
    assert re.fullmatch(pattern, anomaly("score", "incoming", "--model", "m.safetensors").stderr.splitlines()[0])


def test_the_model_remembers_the_resolution(here: Path) -> None:
    model = load_model(here / "m.safetensors")

    assert model.config.smallest_defect == TOLD
    assert model.detector.tiled
    assert len(model.calibration.normal_scores) == NORMALS
    assert all(patch for patches in model.patches.values() for patch in patches)


def test_a_speck_is_found_where_it_is(here: Path) -> None:
    found = rows("incoming", "--model", "m.safetensors")

    assert list(found)[:2] in (["bad0.png", "bad1.png"], ["bad1.png", "bad0.png"])
    assert float(found["bad0.png"]["score"]) > 2 * float(found["good0.png"]["score"])
    for name, (top, left) in {"bad0.png": (100, 404), "bad1.png": (331, 235)}.items():
        x, y, w, h = (int(found[name][f"region_{key}"]) for key in "xywh")
        # The box reaches the speck, whose middle lies on a border of cells.
        assert left - w < x < left + SPECK
        assert top - h < y < top + SPECK


def test_any_size_and_any_number_of_workers_is_scored_alike(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = rows("odd", "incoming", "--model", "m.safetensors")
    monkeypatch.setattr("anomaly_cli.scoring.measure.worker_count", lambda: 3)

    assert rows("odd", "incoming", "--model", "m.safetensors") == first
    assert all(row["status"] == "ok" for row in first.values())


def test_a_stream_gives_the_same_scores(here: Path) -> None:
    result = anomaly("score", "incoming", "--model", "m.safetensors", "--stream", "--quiet")

    streamed = {Path(row["path"]).name: row["score"] for row in map(json.loads, result.stdout.splitlines())}
    assert result.exit_code == 0
    assert streamed == {name: float(row["score"]) for name, row in rows("incoming", "--model", "m.safetensors").items()}


def test_what_is_not_inspected_is_no_speck(here: Path) -> None:
    found = rows("incoming", "--model", "roi.safetensors")

    assert float(found["bad1.png"]["score"]) > 2 * float(found["bad0.png"]["score"])
    assert all(int(row["region_x"]) < SIDE * 14 // 24 for row in found.values())


def test_maps_page_and_update_take_tiles(here: Path, tmp_path: Path) -> None:
    table, updated = tmp_path / "s.csv", tmp_path / "new.safetensors"
    commands: list[tuple[str | Path, ...]] = [
        ("update", "m.safetensors", "incoming/good0.png", "--out", updated),
        ("score", "incoming", "--model", updated, "--out", table, "--resume"),
        ("heatmap", "incoming", "--model", updated, "--out", tmp_path / "h", "--raw", "npy"),
        ("report", table, "--model", updated, "--out", tmp_path / "r.html"),
        ("prototypes", "--model", updated, "--out", tmp_path / "p.png"),
    ]
    for command in commands:
        result = anomaly(*command, "--quiet")
        assert result.exit_code == 0, result.stderr

    raw = np.load(tmp_path / "h" / "incoming" / "bad0.png.map.npy")
    assert raw.shape == (60, 60)
    assert np.unravel_index(raw.argmax(), raw.shape)[0] in (12, 13)
    assert '"evidence"' in (tmp_path / "r.html").read_text()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (
            ("train", "normal", "--smallest-defect", "8", "--anomalies", "incoming"),
            "--anomalies does not go with --smallest-defect: labelled anomalies are described by whole images",
        ),
        (
            ("update", "m.safetensors", "normal", "--anomalies", "incoming", "--out", "no.safetensors"),
            "--anomalies does not go with --smallest-defect: labelled anomalies are described by whole images",
        ),
        (
            ("export", "m.safetensors"),
            "m.safetensors reads images in tiles (--smallest-defect), which an ONNX file cannot: use score",
        ),
    ],
)
def test_what_cannot_take_tiles_says_so(here: Path, command: tuple[str, ...], message: str) -> None:
    pytest.importorskip("onnxscript")

    result = anomaly(*command)

    assert result.exit_code == 2
    assert result.stderr == f"error: {message}\n"
