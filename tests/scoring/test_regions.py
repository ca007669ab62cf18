"""The box around the region of the peak, against a flood fill written out by hand."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from anomaly_cli.scoring.regions import Region, peak_region

Map = NDArray[np.float64]
# Few distinct values make ties, plateaus and touching regions likely.
MAPS = arrays.arrays(
    np.float64,
    arrays.array_shapes(min_dims=2, max_dims=2, max_side=7),
    elements=st.sampled_from([0.0, 0.2, 0.5, 0.9, 1.0, 1.5, 3.0]),
)


def flood_fill_twin(anomaly_map: Map, limit: float, image_height: int, image_width: int) -> Region:
    h, w = anomaly_map.shape
    cells = list(itertools.product(range(h), range(w)))
    peak = max(anomaly_map[cell] for cell in cells)
    start = next(cell for cell in cells if anomaly_map[cell] == peak)
    level = peak if peak < limit else max(limit, peak / 2)
    region, queue = {start}, [start] if peak > 0 else []
    while queue:
        y, x = queue.pop()
        for cell in itertools.product((y - 1, y, y + 1), (x - 1, x, x + 1)):
            if cell in cells and cell not in region and anomaly_map[cell] >= level:
                region.add(cell)
                queue.append(cell)
    scale_y, scale_x = Fraction(image_height, h), Fraction(image_width, w)
    top, left = (math.floor(min(c[axis] for c in region) * scale) for axis, scale in ((0, scale_y), (1, scale_x)))
    bottom = min(image_height, math.ceil((max(y for y, _ in region) + 1) * scale_y))
    right = min(image_width, math.ceil((max(x for _, x in region) + 1) * scale_x))
    return Region(left, top, right - left, bottom - top, len(region) / (h * w))


@given(MAPS, st.sampled_from([0.5, 1.0, 2.0]), st.integers(1, 50), st.integers(1, 50))
def test_the_region_equals_a_flood_fill(anomaly_map: Map, limit: float, height: int, width: int) -> None:
    expected = flood_fill_twin(anomaly_map, limit, height, width)

    assert peak_region(anomaly_map, limit, height, width) == expected


@given(MAPS, st.integers(1, 50), st.integers(1, 50))
def test_the_box_is_never_empty_and_lies_in_the_image(anomaly_map: Map, height: int, width: int) -> None:
    region = peak_region(anomaly_map, 1.0, height, width)

    assert 0 <= region.x < region.x + region.width <= width
    assert 0 <= region.y < region.y + region.height <= height
    assert 0 < region.fraction <= 1


def test_the_box_rounds_outwards_to_whole_pixels() -> None:
    anomaly_map = np.zeros((3, 3))
    anomaly_map[1, 1] = 2.0

    region = peak_region(anomaly_map, 1.0, image_height=10, image_width=100)

    assert region == Region(x=33, y=3, width=34, height=4, fraction=1 / 9)


def test_a_higher_peak_elsewhere_leaves_a_larger_region_out() -> None:
    anomaly_map = np.array([[1.2, 1.2, 1.2, 0.0, 1.3]])

    assert peak_region(anomaly_map, 1.0, 1, 5) == Region(4, 0, 1, 1, 0.2)


def test_regions_that_touch_at_a_corner_are_one() -> None:
    assert peak_region(np.eye(4) * 1.5, 1.0, 8, 8) == Region(0, 0, 8, 8, 0.25)


def test_the_halo_of_a_strong_anomaly_is_left_out() -> None:
    anomaly_map = np.array([[1.1, 1.1, 4.0, 8.0, 4.0, 1.1]])

    assert peak_region(anomaly_map, 1.0, 1, 6) == Region(2, 0, 3, 1, 0.5)


def test_the_region_of_a_normal_image_is_its_peak_cell() -> None:
    assert peak_region(np.array([[0.3, 0.8, 0.7]]), 1.0, 1, 3) == Region(1, 0, 1, 1, 1 / 3)


def test_a_map_of_zeros_gives_its_first_cell() -> None:
    assert peak_region(np.zeros((4, 4)), 1.0, 8, 8) == Region(0, 0, 2, 2, 1 / 16)


def test_float32_maps_give_plain_python_numbers() -> None:
    region = peak_region(np.eye(2, dtype=np.float32), 1.0, 4, 4)

    assert type(region.x) is type(region.width) is int
    assert type(region.fraction) is float


def test_a_map_that_is_not_two_dimensional_is_refused() -> None:
    with pytest.raises(ValueError, match="unpack"):
        peak_region(np.zeros(4), 1.0, 8, 8)
