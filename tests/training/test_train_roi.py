"""`--roi`: kept in the model, applied by every command; what is ignored changes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from command_line import anomaly, rows_of
from PIL import Image
from shared_run import SETTINGS, SIDE, make_images

import anomaly_cli
from anomaly_cli.detector.checkpoint import load_model
from anomaly_cli.training.augmentation import synthetic_defect

TOP = 16  # rows of the images that carry a time stamp and are ignored


def stamp(folder: Path, seed: int) -> None:
    """Draw random noise over the first rows of every picture, without loss elsewhere."""
    rng = np.random.default_rng(seed)
    for path in sorted(folder.rglob("*.*")):
        try:
            with Image.open(path) as image:
                pixels = np.array(image.convert("RGB"))
        except OSError:
            continue
        pixels[:TOP] = rng.integers(0, 256, (TOP, SIDE, 3))
        path.unlink()
        Image.fromarray(pixels).save(path.with_suffix(".png"))


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stamped images, a mask `roi.png`, a folder `masks` with one a file, and models of both."""
    folder = tmp_path_factory.mktemp("roi")
    make_images(folder)
    stamp(folder, 0)
    mask = np.full((SIDE // 2, SIDE // 2), 255, np.uint8)  # of the same aspect, half as large
    mask[: TOP // 2] = 0
    Image.fromarray(mask).save(folder / "roi.png")
    (folder / "masks").mkdir()
    for path in [*(folder / "normal").iterdir(), *(folder / "incoming").rglob("*.png")]:
        Image.fromarray(mask).save(folder / "masks" / f"{path.stem}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("ANOMALY_DEVICE", "cpu")
        for model, roi in (("one.safetensors", "roi.png"), ("by_name.safetensors", "masks")):
            result = anomaly("train", "normal", "--model", model, "--roi", roi, "--quiet", *SETTINGS)
            assert result.exit_code == 0, result.stderr
    return folder


@pytest.fixture
def here(work: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(work)
    monkeypatch.setenv("ANOMALY_DEVICE", "cpu")
    return work


def scores(*arguments: str) -> dict[str, str]:
    result = anomaly("score", *arguments, "--out", "-", "--quiet")
    assert result.exit_code == 0, result.stderr
    return {row["path"]: row["score"] for row in rows_of(result.stdout_bytes)}


def test_a_model_keeps_its_mask(here: Path) -> None:
    model = load_model(here / "one.safetensors")

    assert model.roi is not None
    assert model.roi.shape == (SIDE // 2, SIDE // 2)
    assert model.roi.sum() == (SIDE // 2) * (SIDE - TOP) // 2


def test_another_time_stamp_changes_no_score(here: Path) -> None:
    before = scores("incoming", "--model", "one.safetensors")
    stamp(here / "incoming", 1)

    assert scores("incoming", "--model", "one.safetensors") == before


def test_no_region_lies_where_nothing_is_inspected(here: Path) -> None:
    result = anomaly("score", "incoming", "--model", "one.safetensors", "--out", "-", "--quiet")

    assert all(int(row["region_y"]) >= TOP for row in rows_of(result.stdout_bytes))


def test_the_same_mask_for_every_name_gives_the_same_scores(here: Path) -> None:
    one = scores("incoming", "--model", "one.safetensors")

    assert scores("incoming", "--model", "by_name.safetensors", "--roi", "masks") == one
    assert scores("incoming", "--model", "one.safetensors", "--roi", "roi.png") == one


def test_a_model_of_masks_by_name_asks_for_those_of_new_images(here: Path) -> None:
    result = anomaly("score", "incoming", "--model", "by_name.safetensors")

    assert result.exit_code == 2
    assert result.stderr == (
        "error: the model was trained with one mask a file: name the folder of those of new images by --roi\n"
    )


def test_a_name_without_mask_is_said_before_any_image_is_read(here: Path, tmp_path: Path) -> None:
    result = anomaly("score", "incoming", "--model", "one.safetensors", "--roi", tmp_path, "--out", tmp_path / "s.csv")

    assert result.exit_code == 2
    assert result.stderr == f"error: {tmp_path} holds no mask for incoming/bad0.png: it must be called bad0.png\n"


@pytest.mark.parametrize("command", [("train", "normal"), ("audit", "normal")])
def test_a_mask_of_another_aspect_is_one_line(here: Path, tmp_path: Path, command: tuple[str, str]) -> None:
    Image.new("L", (20, 40), 255).save(tmp_path / "tall.png")
    out = ("--model", tmp_path / "m.safetensors") if command[0] == "train" else ("--out", tmp_path / "a.csv")

    result = anomaly(*command, *out, "--roi", tmp_path / "tall.png", "--quiet", "--image-size", "64")

    assert result.exit_code == 2
    assert result.stderr == (
        f"error: normal/00.png has 64 x 64 pixels, its region of interest {tmp_path}/tall.png has 20 x 40: "
        "a mask must be as large as its image, or have the same aspect ratio\n"
    )


def test_a_stream_goes_on_after_an_image_that_no_mask_fits(here: Path, tmp_path: Path) -> None:
    Image.new("RGB", (40, 90)).save(tmp_path / "tall.png")

    result = anomaly("score", tmp_path, "incoming", "--model", "one.safetensors", "--stream", "--quiet")

    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert result.exit_code == 0
    assert {row["status"] for row in rows} == {"ok", "unreadable"}
    (odd,) = [row for row in rows if row["status"] == "unreadable"]
    assert odd["reason"].startswith(f"{tmp_path}/tall.png has 40 x 90 pixels, its region of interest of the model has")


def test_a_region_for_a_model_of_whole_images_is_refused(here: Path, trained: object, tmp_path: Path) -> None:
    model = getattr(trained, "model")  # noqa: B009

    result = anomaly("score", "incoming", "--model", model, "--roi", "roi.png", "--out", tmp_path / "s.csv")

    assert result.exit_code == 2
    assert result.stderr == (
        "error: --roi: the model was trained on whole images, whose limit is not that of a part: train it with --roi\n"
    )


def test_export_says_that_it_cannot(here: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")

    result = anomaly("export", "one.safetensors", "--out", tmp_path / "m.onnx")

    assert result.exit_code == 2
    assert result.stderr == (
        "error: one.safetensors inspects a region of interest (--roi), which an ONNX file cannot: use score\n"
    )


def test_update_heatmap_and_report_take_the_region(here: Path, tmp_path: Path) -> None:
    updated, table = tmp_path / "new.safetensors", tmp_path / "s.csv"

    commands: list[tuple[str | Path, ...]] = [
        ("update", "one.safetensors", "incoming/deep", "--out", updated),
        ("score", "incoming", "--model", updated, "--out", table),
        ("heatmap", "incoming", "--model", updated, "--out", tmp_path / "h", "--raw", "npy"),
        ("report", table, "--model", updated, "--out", tmp_path / "r.html"),
        ("score", "incoming", "--model", updated, "--out", table, "--resume"),
    ]
    for command in commands:
        result = anomaly(*command, "--quiet")
        assert result.exit_code == 0, result.stderr

    raw = np.load(tmp_path / "h" / "incoming" / "bad0.png.map.npy")
    assert (raw[: TOP // 8] == 0).all()
    assert (raw[TOP // 8 :] > 0).all()
    overlay = np.asarray(Image.open(tmp_path / "h" / "incoming" / "bad0.png.png").convert("RGB"))
    original = np.asarray(Image.open("incoming/bad0.png"))
    assert (overlay[: TOP - 4, :SIDE] == original[: TOP - 4]).all()
    assert (overlay[TOP, :SIDE] != original[TOP]).any(axis=1).all()  # the border
    assert anomaly_cli.heatmap("incoming/bad0.png", updated).size == (220, overlay.shape[0])


def test_a_synthetic_defect_stays_in_the_region() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    inspected = np.zeros((64, 64), bool)
    inspected[40:60, 10:30] = True

    changed = [synthetic_defect(pixels, pixels[::-1], np.random.default_rng(seed), inspected) for seed in range(12)]

    assert all((each[~inspected] == pixels[~inspected]).all() for each in changed)
    assert all((each[inspected] != pixels[inspected]).any() for each in changed)
