"""Scales: how much smaller the small copy is, when there is one, and what the scales are called."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anomaly_cli.detector.scales import SHORTEST_SIDE, has_small_scale, reduction, scale_title

SIDES = st.integers(1, 40).map(lambda steps: 32 * steps)


@pytest.mark.parametrize(
    ("height", "width", "pixels"),
    [
        (256, 256, 4),
        (192, 352, 4),
        (512, 512, 8),
        (96, 96, 2),  # 1.5, rounded to even
        (64, 64, 1),
        (32, 32, 1),
        (96, 704, 3),  # a long strip: 4 would leave fewer than 32 rows
        (32, 512, 1),
    ],
)
def test_the_small_copy_has_about_64_pixels_squared(height: int, width: int, pixels: int) -> None:
    assert reduction(height, width) == pixels


@given(SIDES, SIDES)
@settings(deadline=None, derandomize=True)
def test_the_small_copy_never_loses_the_coarsest_cell_and_ignores_orientation(height: int, width: int) -> None:
    by = reduction(height, width)

    assert by >= 1
    assert min(height, width) // by >= SHORTEST_SIDE
    assert by == reduction(width, height)


@pytest.mark.parametrize(("image_size", "has"), [(32, False), (64, False), (96, True), (256, True)])
def test_an_image_that_is_small_itself_has_no_small_scale(image_size: int, has: bool) -> None:
    assert has_small_scale(image_size) is has


def test_scales_are_named_for_people() -> None:
    assert [scale_title(name) for name in ("8", "image", "small")] == ["stride 8", "image level", "small copy"]
