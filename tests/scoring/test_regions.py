"""The box around the region of the peak, and all regions, against a flood fill written out by hand."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from anomaly_cli.config import RegionRule
from anomaly_cli.errors import ConfigError
from anomaly_cli.scoring.outlines import outline_of
from anomaly_cli.scoring.regions import Region, find_regions, peak_region, region_cells, region_mask
from anomaly_cli.tables.row import RegionRow

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
    region = flood(anomaly_map, start, level) if peak > 0 else {start}
    left, top, right, bottom = box_twin(region, h, w, image_height, image_width)
    return Region(left, top, right - left, bottom - top, len(region) / (h * w))


def flood(anomaly_map: Map, start: tuple[int, int], level: float) -> set[tuple[int, int]]:
    cells = list(itertools.product(*map(range, anomaly_map.shape)))
    region, queue = {start}, [start]
    while queue:
        y, x = queue.pop()
        for cell in itertools.product((y - 1, y, y + 1), (x - 1, x, x + 1)):
            if cell in cells and cell not in region and anomaly_map[cell] >= level:
                region.add(cell)
                queue.append(cell)
    return region


def box_twin(region: set[tuple[int, int]], h: int, w: int, image_height: int, image_width: int) -> tuple[int, ...]:
    scale_y, scale_x = Fraction(image_height, h), Fraction(image_width, w)
    top, left = (math.floor(min(c[axis] for c in region) * scale) for axis, scale in ((0, scale_y), (1, scale_x)))
    bottom = min(image_height, math.ceil((max(y for y, _ in region) + 1) * scale_y))
    right = min(image_width, math.ceil((max(x for _, x in region) + 1) * scale_x))
    return left, top, right, bottom


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


# All regions


def all_regions(anomaly_map: Map, height: int, width: int, **rule: Any) -> tuple[RegionRow, ...]:
    scales = (np.arange(anomaly_map.size).reshape(anomaly_map.shape) % 2).astype(np.uint8)
    return find_regions(anomaly_map, scales, ("4", "16"), RegionRule(**rule), (height, width))


@given(MAPS, st.sampled_from([0.5, 1.0, 2.0]), st.integers(1, 50), st.integers(1, 50))
def test_all_regions_equal_flood_fills_from_every_cell(anomaly_map: Map, limit: float, height: int, width: int) -> None:
    h, w = anomaly_map.shape
    left = [cell for cell in itertools.product(range(h), range(w)) if anomaly_map[cell] >= limit]
    expected = []
    while left:
        region = sorted(flood(anomaly_map, left[0], limit))
        left = [cell for cell in left if cell not in region]
        peak = max(region, key=lambda cell: (anomaly_map[cell], [-each for each in cell]))
        x, y, right, bottom = box_twin(set(region), h, w, height, width)
        share = len(region) / (h * w)
        values = [anomaly_map[cell] for cell in region]
        order = (-anomaly_map[peak], peak)
        rest = (float(max(values)), pytest.approx(sum(values) / len(values)), ("4", "16")[(peak[0] * w + peak[1]) % 2])
        expected.append((order, (x, y, right - x, bottom - y, max(1, round(share * height * width)), share, *rest)))

    found = all_regions(anomaly_map, height, width, threshold=limit)

    in_order: list[Any] = [values for _, values in sorted(expected, key=lambda each: each[0])]
    assert [region[:-1] for region in found] == in_order


@given(MAPS, st.integers(1, 50), st.integers(1, 50), st.integers(0, 40))
def test_a_smallest_area_leaves_out_the_smaller_regions_in_list_and_mask(
    anomaly_map: Map, height: int, width: int, area: int
) -> None:
    everything = all_regions(anomaly_map, height, width)
    rule = RegionRule(min_area=area)

    found = all_regions(anomaly_map, height, width, min_area=area)

    assert found == tuple(region for region in everything if region.area >= area)
    cells = region_cells(anomaly_map, rule, height, width)
    assert cells.sum() == pytest.approx(sum(region.area_fraction for region in found) * anomaly_map.size)


@given(MAPS, st.integers(1, 50), st.integers(1, 50))
def test_a_mask_is_white_where_a_cell_reaches_into_a_pixel(anomaly_map: Map, height: int, width: int) -> None:
    h, w = anomaly_map.shape

    mask = region_mask(anomaly_map >= 1, height, width)

    expected = np.zeros((height, width), bool)
    for y, x in np.argwhere(anomaly_map >= 1).tolist():
        left, top, right, bottom = box_twin({(y, x)}, h, w, height, width)
        expected[top:bottom, left:right] = True
    np.testing.assert_array_equal(mask, expected)


@given(MAPS, st.integers(1, 50), st.integers(1, 50))
def test_the_polygons_of_an_outline_are_the_cells_of_the_region(anomaly_map: Map, height: int, width: int) -> None:
    cells = anomaly_map >= 1
    h, w = cells.shape

    outline = outline_of(cells, 100 * h, 100 * w)

    covered = np.zeros((h, w), int)
    for polygon in outline:
        corners = np.array(polygon).reshape(-1, 2)
        assert (corners % 100 == 0).all()
        for y, x in itertools.product(range(h), range(w)):
            covered[y, x] += inside_twin(corners.tolist(), 100 * x + 50, 100 * y + 50)
    np.testing.assert_array_equal(covered, cells)


def inside_twin(corners: list[list[float]], x: float, y: float) -> bool:
    """Count the upright sides that a ray to the right crosses."""
    crossed = 0
    for (x1, y1), (x2, y2) in zip(corners, corners[1:] + corners[:1], strict=True):
        assert (x1 == x2) != (y1 == y2)
        crossed += x1 == x2 and x1 > x and min(y1, y2) < y < max(y1, y2)
    return crossed % 2 == 1


def test_a_region_without_holes_has_one_polygon_and_one_with_a_hole_rectangles() -> None:
    square, ring = np.ones((2, 2), bool), np.ones((3, 3), bool)
    ring[1, 1] = False

    assert outline_of(square, 20, 40) == ((0.0, 0.0, 40.0, 0.0, 40.0, 20.0, 0.0, 20.0),)
    assert len(outline_of(ring, 3, 3)) == 4


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ({"threshold": 0.0}, "--region-threshold must be a number above 0, got 0"),
        ({"threshold": math.nan}, "--region-threshold must be a number above 0, got nan"),
        ({"threshold": math.inf}, "--region-threshold must be a number above 0, got inf"),
        ({"min_area": -1}, "--min-area must be 0 pixels or more, got -1"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(rule: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RegionRule(**rule)

    assert str(caught.value) == said
