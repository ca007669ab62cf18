"""Small pictures for the review page: sizes, and quantised maps against a brute-force twin."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomaly_cli.errors import UnreadableImageError
from anomaly_cli.review.overlay import FULL_SCALE
from anomaly_cli.review.thumbnails import MAX_HEAT_SIDE, THUMBNAIL_SIDE, make_heat, make_thumbnail


@pytest.mark.parametrize(
    ("size", "expected"),
    [((640, 480), (320, 240)), ((100, 40), (100, 40)), ((1, 3000), (1, 320)), ((320, 320), (320, 320))],
)
def test_a_thumbnail_keeps_the_aspect_and_is_never_enlarged(
    tmp_path: Path, size: tuple[int, int], expected: tuple[int, int]
) -> None:
    Image.new("RGB", size, "teal").save(tmp_path / "a.png")

    with Image.open(io.BytesIO(make_thumbnail(tmp_path / "a.png"))) as picture:
        assert max(picture.size) <= THUMBNAIL_SIDE
        assert picture.size == pytest.approx(expected, abs=1)
        assert np.asarray(picture.convert("RGB")).mean(axis=(0, 1)) == pytest.approx([0, 128, 128], abs=6)


def test_a_file_that_is_no_image_is_unreadable(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("words")

    with pytest.raises(UnreadableImageError, match="not an image"):
        make_thumbnail(tmp_path / "a.png")


def test_a_map_below_half_the_limit_is_not_kept() -> None:
    assert make_heat(np.full((8, 8), 0.5, np.float32)) is None


def test_levels_are_steps_of_the_full_scale() -> None:
    anomaly_map = np.array([[0, 1, FULL_SCALE], [FULL_SCALE / 2, 9, 0.2]], np.float32)

    heat = make_heat(anomaly_map)

    assert heat is not None
    assert (heat.height, heat.width) == (2, 3)
    slow = [round(min(1.0, value / FULL_SCALE) * 255) for value in anomaly_map.ravel().tolist()]
    assert list(heat.levels) == slow


def test_a_cell_just_below_the_limit_is_in_no_region() -> None:
    heat = make_heat(np.array([[0.999, 1.0]], np.float32))

    assert heat is not None
    assert list(heat.levels) == [84, 85]


def test_a_large_map_is_reduced_to_the_largest_of_its_cells_and_keeps_its_regions() -> None:
    anomaly_map = np.zeros((2 * MAX_HEAT_SIDE, 40), np.float32)
    anomaly_map[0, 0] = FULL_SCALE
    anomaly_map[0, 2] = 0.8
    anomaly_map[-2:, -2:] = FULL_SCALE

    heat = make_heat(anomaly_map)

    assert heat is not None
    assert (heat.height, heat.width) == (MAX_HEAT_SIDE, 20)
    assert heat.levels[0] == 255
    assert heat.levels[1] == round(255 * 0.8 / FULL_SCALE)
    assert heat.levels[-1] == 255
