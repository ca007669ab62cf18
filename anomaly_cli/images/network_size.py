"""The size at which an image enters the network: its aspect kept, sides multiples of the coarsest stride."""

from __future__ import annotations

from functools import cache, lru_cache

SIZE_STEP = 32  # pixels; the coarsest stride of convolutional backbones
MAX_ASPECT = 8  # a longer strip is squeezed to 8:1
AREA_TOLERANCE = 0.125  # the work per image stays within this fraction of image_size²


@lru_cache(maxsize=4096)
def network_size(height: int, width: int, image_size: int, step: int = SIZE_STEP) -> tuple[int, int]:
    """Choose the size at which an image enters the network: its aspect ratio, the area of a square.

    Args:
        height: of the original, pixels, at least 1.
        width: likewise.
        image_size: side of the square whose area is aimed at, a multiple of `step`.
        step: that both sides are multiples of, pixels.

    Returns:
        (height, width), multiples of `step`; a square gives exactly (image_size, image_size).
    """
    if height > width:  # so that a turned image always gets the turned size
        columns, rows = network_size(width, height, image_size, step)
        return rows, columns
    aspect = min(width / height, MAX_ASPECT)

    def misfit(size: tuple[int, int]) -> tuple[float, int]:
        stretch = size[1] / size[0] / aspect
        return max(stretch, 1 / stretch), abs(size[0] * size[1] - image_size**2)

    return min(landscape_sizes(image_size, step), key=misfit)


@cache
def landscape_sizes(image_size: int, step: int = SIZE_STEP) -> tuple[tuple[int, int], ...]:
    """List every (height, width) with height <= width that `network_size` chooses from."""
    if image_size < step or image_size % step:
        raise ValueError(f"image_size must be a positive multiple of {step}, got {image_size}")
    return tuple(
        (height, width)
        for height in range(step, 2 * image_size, step)
        for width in range(height, MAX_ASPECT * height + 1, step)
        if abs(height * width - image_size**2) <= AREA_TOLERANCE * image_size**2
    )
