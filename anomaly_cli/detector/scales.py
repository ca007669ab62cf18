"""Names and grids of the scales: a stride for those with a map, and two that see the picture as a whole."""

from __future__ import annotations

from math import sqrt

IMAGE_SCALE = "image"  # globally pooled maps of the image
SMALL_SCALE = "small"  # of a copy of it of about `SMALL_SIDE` pixels squared: coarse form, which a large image hides
POOLED_SCALES = (IMAGE_SCALE, SMALL_SCALE)
SMALL_SIDE = 64  # pixels
FINEST_STEP = 8  # pixels from one cell of a map to the next; a finer stride's cells are averaged to such a step
SHORTEST_SIDE = 32  # pixels; a copy is not made smaller, for the coarsest maps to have a cell


def reduction(height: int, width: int) -> int:
    """Choose how many pixels a side make one of the small copy of an image at network size; 1 is no reduction."""
    return max(1, min(round(sqrt(height * width) / SMALL_SIDE), min(height, width) // SHORTEST_SIDE))


def has_small_scale(image_size: int) -> bool:
    """Whether the small copy of an image of so many pixels squared is another picture than the image itself."""
    return reduction(image_size, image_size) > 1


def cell_step(name: str) -> int:
    """Tell how many pixels lie from one cell of the local scale of that name to the next."""
    return max(int(name), FINEST_STEP)


def scale_title(name: str) -> str:
    """Name a scale for people."""
    return {IMAGE_SCALE: "image level", SMALL_SCALE: "small copy"}.get(name, f"stride {name}")
