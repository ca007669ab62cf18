"""Scales: how much smaller the small copy is, when there is one, and what the scales are called."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anomaly_cli.detector.scales import SHORTEST_SIDE, cell_step, has_small_scale, is_local, reduction, scale_title

SIDES = st.integers(1, 40).map(lambda steps: 32 * steps)


@pytest.mark.parametrize(
    ("height", "width", "pixels"),
    [
        (256, 256, 2),
        (192, 352, 2),
        (512, 512, 4),
        (192, 192, 2),  # 1.5, rounded to even
        (160, 160, 1),
        (64, 64, 1),
        (96, 1600, 3),
        (32, 2048, 1),  # a long strip: 2 would leave fewer than 32 rows
    ],
)
def test_the_small_copy_has_about_128_pixels_squared(height: int, width: int, pixels: int) -> None:
    assert reduction(height, width) == pixels


@given(SIDES, SIDES)
@settings(deadline=None, derandomize=True)
def test_the_small_copy_never_loses_the_coarsest_cell_and_ignores_orientation(height: int, width: int) -> None:
    by = reduction(height, width)

    assert by >= 1
    assert min(height, width) // by >= SHORTEST_SIDE
    assert by == reduction(width, height)


@pytest.mark.parametrize(("image_size", "has"), [(64, False), (128, False), (160, False), (192, True), (256, True)])
def test_an_image_that_is_small_itself_has_no_small_scale(image_size: int, has: bool) -> None:
    assert has_small_scale(image_size) is has


def test_scales_are_named_for_people() -> None:
    assert [scale_title(name) for name in ("8", "block_4", "image", "small", "turned", "learned", "coarse")] == [
        "stride 8",
        "block 4",
        "image level",
        "small copy",
        "turned copies",
        "learned embedding",
        "coarse cells",
    ]


def test_the_anomaly_map_is_fused_from_strides_alone() -> None:
    assert [name for name in ("4", "8", "16", "image", "small", "turned", "learned", "coarse") if is_local(name)] == [
        "4",
        "8",
        "16",
    ]


@pytest.mark.parametrize(
    ("name", "stride", "step"), [("4", 4, 8), ("8", 8, 8), ("16", 16, 16), ("block_4", 14, 14), ("coarse", 16, 32)]
)
def test_a_coarse_cell_lies_a_stride_of_the_small_copy_from_the_next(name: str, stride: int, step: int) -> None:
    assert cell_step(name, 256, 256, stride) == step
