"""Large pictures: read in parts, at another resolution than the file's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomaly_cli.images.decode import load_image, read_pixels, read_size
from anomaly_cli.images.picture import Picture, picture_size
from anomaly_cli.images.roi import restrict


def smooth(height: int, width: int) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(("scale", "size"), [(1.0, (96, 128)), (0.5, (64, 64)), (2.0, (192, 256)), (0.01, (32, 32))])
def test_a_picture_has_sides_of_multiples_of_32(scale: float, size: tuple[int, int]) -> None:
    assert picture_size(100, 130, scale) == size


def test_one_pixel_and_strips_have_a_picture(tmp_path: Path) -> None:
    for size in ((1, 1), (1, 900), (2000, 40)):
        smooth(*size).save(tmp_path / "a.png")
        picture = load_image(tmp_path / "a.png", 64, scale=0.5).picture

        assert picture is not None
        assert picture.read(0, 0, picture.rows, picture.columns).shape == (picture.rows, picture.columns, 3)


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_parts_are_those_of_the_resized_whole(tmp_path: Path, scale: float) -> None:
    smooth(160, 320).save(tmp_path / "a.png")
    picture = load_image(tmp_path / "a.png", 64, scale=scale).picture
    assert picture is not None
    rows, columns = picture_size(160, 320, scale)
    whole = np.asarray(smooth(160, 320).resize((columns, rows), Image.Resampling.BICUBIC)).astype(int)

    part = picture.read(32, 64, 32, 64).astype(int)

    assert np.abs(part[8:-8, 8:-8] - whole[40:56, 72:120]).max() <= 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_upright(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    smooth(64, 128).save(tmp_path / "a.png", exif=exif)

    picture = load_image(tmp_path / "a.png", 64, scale=1.0).picture

    upright = read_pixels(tmp_path / "a.png")
    assert picture is not None
    np.testing.assert_array_equal(picture.read(0, 0, picture.rows, picture.columns), upright)
    assert read_size(tmp_path / "a.png") == upright.shape[:2]


def test_grey_becomes_three_channels(tmp_path: Path) -> None:
    smooth(64, 64).convert("L").save(tmp_path / "a.png")

    picture = load_image(tmp_path / "a.png", 64, scale=1.0).picture

    assert picture is not None
    np.testing.assert_array_equal(picture.read(0, 0, 64, 64), read_pixels(tmp_path / "a.png"))


def test_ignored_pixels_of_a_picture_have_the_colour_of_the_small_image(tmp_path: Path) -> None:
    smooth(128, 128).save(tmp_path / "a.png")
    mask = np.zeros((4, 4), bool)
    mask[1, 2] = True
    image = restrict(load_image(tmp_path / "a.png", 64, scale=1.0), mask)
    picture = image.picture
    assert picture is not None

    part = picture.read(0, 0, 128, 128)

    assert (part[:24] == image.pixels[0, 0]).all()
    np.testing.assert_array_equal(part[40:56, 72:88], read_pixels(tmp_path / "a.png")[40:56, 72:88])
    cells = picture.inspected_cells(32)
    assert cells is not None
    assert np.argwhere(cells).tolist() == [[1, 2]]
    assert Picture(np.zeros((2, 2, 3), np.uint8), 32, 32).inspected_cells(8) is None
