"""Regions of interest: masks read, matched to images, and applied to pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomaly_cli.errors import ConfigError
from anomaly_cli.images.decode import LoadedImage
from anomaly_cli.images.roi import RoiFolder, SharedRoi, inspected_part, open_roi, read_mask, resize_mask, restrict


def write_mask(path: Path, values: list[list[int]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.array(values, np.uint8)).save(path)
    return path


def test_grey_from_128_is_white_and_so_is_1_in_a_mask_of_zeros_and_ones(tmp_path: Path) -> None:
    assert read_mask(write_mask(tmp_path / "a.png", [[0, 127, 128, 255]])).tolist() == [[False, False, True, True]]
    assert read_mask(write_mask(tmp_path / "b.png", [[0, 1, 0, 1]])).tolist() == [[False, True, False, True]]


def test_a_mask_that_cannot_be_used_is_one_line(tmp_path: Path) -> None:
    black = write_mask(tmp_path / "black.png", [[0, 0]])
    (tmp_path / "text.png").write_text("hello")
    for path, message in {
        black: f"{black} is black: a region of interest is white where images are inspected",
        tmp_path / "text.png": f"{tmp_path}/text.png cannot be read as a mask: not an image",
        tmp_path / "none.png": f"--roi: no such file or folder: {tmp_path}/none.png",
    }.items():
        with pytest.raises(ConfigError) as raised:
            open_roi(path)
        assert str(raised.value) == message


def test_a_mask_fits_images_of_its_aspect_only() -> None:
    roi = SharedRoi(np.ones((30, 40), bool), "roi.png")

    assert roi.mask_of(Path("a.jpg"), 3000, 4000) is roi.mask
    with pytest.raises(ConfigError) as raised:
        roi.mask_of(Path("a.jpg"), 4000, 3000)
    assert str(raised.value) == (
        "a.jpg has 3000 x 4000 pixels, its region of interest roi.png has 40 x 30: "
        "a mask must be as large as its image, or have the same aspect ratio"
    )


def test_a_folder_has_a_mask_for_each_name_that_of_the_same_folder_first(tmp_path: Path) -> None:
    write_mask(tmp_path / "a.png", [[255, 0]])
    write_mask(tmp_path / "left" / "a.png", [[0, 255]])
    roi = open_roi(tmp_path)

    assert isinstance(roi, RoiFolder)
    assert roi.mask_of(Path("x/left/a.jpg"), 1, 2).tolist() == [[False, True]]
    assert roi.mask_of(Path("x/right/a.jpg"), 1, 2).tolist() == [[True, False]]
    with pytest.raises(ConfigError) as raised:
        roi.check_names([Path("x/a.jpg"), Path("x/b.jpg")])
    assert str(raised.value) == f"{tmp_path} holds no mask for x/b.jpg: it must be called b.png"


def test_two_masks_that_differ_in_the_suffix_only_are_refused(tmp_path: Path) -> None:
    one, other = (write_mask(tmp_path / name, [[255]]) for name in ("a.bmp", "a.png"))

    with pytest.raises(ConfigError) as raised:
        RoiFolder(tmp_path).check_names([Path("a.jpg")])
    assert str(raised.value) == f"{one} and {other}: one mask a file is needed"


def test_the_digest_changes_with_a_mask(tmp_path: Path) -> None:
    write_mask(tmp_path / "a.png", [[255, 0]])
    before = RoiFolder(tmp_path).digest, open_roi(tmp_path / "a.png").digest
    write_mask(tmp_path / "a.png", [[0, 255]])
    after = RoiFolder(tmp_path).digest, open_roi(tmp_path / "a.png").digest

    assert before[0] != after[0]
    assert before[1] != after[1]


def test_ignored_pixels_get_the_mean_colour_of_the_others() -> None:
    pixels = np.arange(4 * 4 * 3, dtype=np.uint8).reshape(4, 4, 3)
    mask = np.zeros((2, 2), bool)
    mask[0, 1] = True

    image = restrict(LoadedImage(pixels, 4, 4), mask)
    changed = pixels.copy()
    changed[2:] = 200
    again = restrict(LoadedImage(changed, 4, 4), mask)

    assert image.inspected is not None
    assert image.inspected.sum() == 4
    np.testing.assert_array_equal(image.pixels[:2, 2:], pixels[:2, 2:])
    np.testing.assert_array_equal(image.pixels[3, 3], np.rint(pixels[:2, 2:].reshape(-1, 3).mean(axis=0)))
    np.testing.assert_array_equal(image.pixels, again.pixels)
    np.testing.assert_array_equal(inspected_part(image), pixels[:2, 2:])


def test_a_resized_mask_is_never_empty() -> None:
    mask = np.zeros((100, 100), bool)
    mask[3, 50] = True

    assert resize_mask(mask, 4, 4).sum() == 1
