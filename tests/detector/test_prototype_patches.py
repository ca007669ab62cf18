"""Thumbnails of prototypes: cut where the prototype comes from, kept in the model file, left out on request."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import anomaly, rows_of
from PIL import Image
from safetensors.torch import load_file
from shared_run import CONFIG, SETTINGS, Trained, texture

from anomaly_cli.detector.checkpoint import PATCHES, Model, load_model
from anomaly_cli.detector.features import scale_features
from anomaly_cli.detector.prototype_patches import (
    CONTEXT,
    IMAGE_SIDE,
    PATCH_SIDE,
    cut_patch,
    decode_patches,
    encode_patches,
    patch_box,
)
from anomaly_cli.detector.scales import COARSE_SCALE, IMAGE_SCALE
from anomaly_cli.errors import InputError
from anomaly_cli.images.decode import load_image
from anomaly_cli.scoring.pixels import to_tensor
from anomaly_cli.training import train as training
from anomaly_cli.training.cell_samples import Origin
from anomaly_cli.training.prototype_patches import cut_patches
from anomaly_cli.training.run import TrainingContext


def nearest_patches(model: Model, paths: list[Path], name: str) -> list[bytes]:
    """Slow twin: compare every prototype of a scale with all cells of all images and cut around the nearest."""
    images = [load_image(path, model.config.image_size) for path in paths]
    scale = model.detector.scale(name)
    cells = []
    for image in images:
        features = scale_features(model.detector.backbone, to_tensor(image), (name,))[name][0]
        cells.append(scale.whitening(features.flatten(1).T))
    patches = []
    for prototype in scale.memory.prototypes:
        distances = torch.stack([(each - prototype).norm(dim=1).min() for each in cells])
        number = int(distances.argmin())
        cell = int((cells[number] - prototype).norm(dim=1).argmin())
        pixels = images[number].pixels
        patches.append(cut_patch(pixels, model.detector.cell_step(name, *pixels.shape[:2]), cell))
    return patches


@pytest.mark.parametrize("name", ["8", "16", IMAGE_SCALE, COARSE_SCALE])
def test_a_thumbnail_shows_where_its_prototype_comes_from(loaded: Model, trained: Trained, name: str) -> None:
    paths = sorted((trained.folder / "normal").glob("[0-9]*"))

    with torch.inference_mode():
        expected = nearest_patches(loaded, paths, name)

    assert loaded.patches[name] == expected
    assert len(set(expected)) > 1


def test_the_same_training_cuts_the_same_thumbnails(trained_again: training.TrainReport, loaded: Model) -> None:
    assert trained_again.model.patches == loaded.patches


@pytest.mark.parametrize(("height", "width"), [(64, 64), (96, 160), (256, 224)])
@pytest.mark.parametrize("stride", [8, 16])
def test_the_box_is_the_square_in_the_image_that_is_centred_best(height: int, width: int, stride: int) -> None:
    for cell in range((height // stride) * (width // stride)):
        left, top, right, bottom = patch_box(height, width, stride, cell)

        row, column = cell // (width // stride), cell % (width // stride)
        for start, end, place, length in ((left, right, column, width), (top, bottom, row, height)):
            side = min(CONTEXT * stride, length)
            centre = place * stride + stride / 2
            best = min(range(length - side + 1), key=lambda at: abs(at + side / 2 - centre))
            assert (start, end) == (best, best + side)
            assert start <= place * stride < (place + 1) * stride <= end


def test_at_image_level_all_of_the_image_is_shown_at_its_aspect() -> None:
    pixels = texture(np.random.default_rng(0), 96, 192)

    patch = Image.open(io.BytesIO(cut_patch(pixels, None, 0)))

    assert (patch.format, patch.size) == ("WEBP", (IMAGE_SIDE, IMAGE_SIDE // 2))
    small = np.asarray(Image.fromarray(pixels).reduce(3), np.float64)
    assert np.abs(np.asarray(patch.convert("RGB"), np.float64) - small).mean() < 12


@pytest.mark.parametrize("stride", [8, 16, 32])
def test_a_patch_shows_the_pixels_of_its_box_at_one_size(stride: int) -> None:
    pixels, cell = np.zeros((256, 256, 3), np.uint8), 256 // stride * 5 + 3
    left, top, right, bottom = patch_box(256, 256, stride, cell)
    pixels[top:bottom, left:right] = (0, 200, 0)

    patch = np.asarray(Image.open(io.BytesIO(cut_patch(pixels, stride, cell))).convert("RGB"))

    assert patch.shape == (PATCH_SIDE, PATCH_SIDE, 3)
    assert np.abs(patch.astype(int) - (0, 200, 0)).max() < 8


def test_a_patch_of_an_image_that_is_smaller_than_it_is_reduced_too() -> None:
    patch = Image.open(io.BytesIO(cut_patch(texture(np.random.default_rng(0), 64, 160), 16, 9)))

    assert patch.size == (48, 32)


def test_pictures_come_out_of_a_pack_as_they_went_in() -> None:
    pictures = [b"one", b"\x00", b"a third \xff"]

    content, ends = encode_patches(pictures)

    assert (content.dtype, ends.tolist()) == (torch.uint8, [3, 4, 13])
    assert decode_patches(content, ends, 3) == pictures


@pytest.mark.parametrize(
    ("ends", "count"),
    [([3, 4], 2), ([3, 4, 13], 2), ([4, 3, 13], 3), ([3, 3, 13], 3), ([3, 4, 14], 3), ([-1, 4, 13], 3)],
)
def test_a_pack_that_does_not_fit_is_refused(ends: list[int], count: int) -> None:
    content = torch.zeros(13, dtype=torch.uint8)

    with pytest.raises(ValueError, match=f"^{len(ends)} thumbnails in 13 bytes, for {count} prototypes$"):
        decode_patches(content, torch.tensor(ends), count)


def test_an_image_that_is_gone_is_named(loaded: Model) -> None:
    run = TrainingContext(CONFIG, torch.device("cpu"), 1, lambda *_: None)

    with pytest.raises(InputError, match=r"^gone\.png was changed or removed during training: no such file$"):
        cut_patches(loaded.detector, {"8": [Origin(0, 3)]}, [Path("gone.png")], run)


def test_private_images_leave_no_thumbnail_and_the_model_scores_the_same(here: Path) -> None:
    tables = []
    for name, options in (("with", ()), ("without", ("--no-thumbnails",))):
        model = f"{name}.safetensors"
        assert anomaly("train", "normal", *SETTINGS, *options, "--model", model, "-q").exit_code == 0
        tables.append(rows_of(anomaly("score", "incoming", "--model", model, "--out", "-", "-q").stdout_bytes))

    state = load_file("without.safetensors")
    assert [key for key in state if key.startswith(PATCHES)] == []
    assert [key for key, value in state.items() if value.dtype == torch.uint8] == []
    assert {key for key in load_file("with.safetensors") if key.startswith(PATCHES)} == {
        f"{PATCHES}{scale}.{part}"
        for scale in ("4", "8", "16", IMAGE_SCALE, COARSE_SCALE)
        for part in ("content", "ends")
    }
    assert tables[0] == tables[1]
    assert load_model(Path("without.safetensors")).patches == {}


def test_info_says_whether_there_are_thumbnails(here: Path) -> None:
    anomaly("train", "normal", *SETTINGS, "--no-thumbnails", "--model", "without.safetensors", "-q")

    told = [anomaly("info", *name).stdout for name in ([], ["without.safetensors"])]

    size = sum(value.nbytes for name, value in load_file("anomaly.safetensors").items() if name.startswith(PATCHES))
    assert f"\nthumbnails    of every prototype, {size / 1000:.0f} kB\n" in told[0]
    assert "\nthumbnails    none\n" in told[1]


@pytest.fixture
def more(here: Path) -> list[Path]:
    """Three normal images of another kind."""
    Path("more").mkdir()
    rng = np.random.default_rng(7)
    paths = [Path("more", f"{i}.png") for i in range(3)]
    for path in paths:
        pixels = texture(rng, 64, 64)
        pixels[:, ::4] = 30
        Image.fromarray(pixels).save(path)
    return paths


def test_an_update_keeps_the_thumbnails_of_what_stays_and_cuts_those_of_what_is_new(
    here: Path, more: list[Path], loaded: Model
) -> None:
    assert anomaly("update", "anomaly.safetensors", "more", "--out", "grown.safetensors", "-q").exit_code == 0

    grown = load_model(Path("grown.safetensors"))
    paths = [*sorted(Path("normal").glob("[0-9]*")), *more]
    with torch.inference_mode():
        expected = {name: nearest_patches(grown, paths, name) for name in grown.detector.scale_names}
    assert grown.patches == expected
    assert all(set(loaded.patches[name]) & set(grown.patches[name]) for name in grown.patches)
    assert all(set(grown.patches[name]) - set(loaded.patches[name]) for name in grown.patches)


def test_an_update_of_a_model_without_thumbnails_adds_none(here: Path, more: list[Path]) -> None:
    anomaly("train", "normal", *SETTINGS, "--no-thumbnails", "--model", "private.safetensors", "-q")

    result = anomaly("update", "private.safetensors", "more", "-q")

    assert (result.exit_code, result.stderr) == (0, "")
    assert load_model(Path("private.safetensors")).patches == {}
    assert Path("private.safetensors").stat().st_size < Path("anomaly.safetensors").stat().st_size
