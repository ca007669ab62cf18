"""Names and grids of the scales: local scales are named by their stride, two pooled scales see the image as a whole."""

from __future__ import annotations

from math import sqrt

IMAGE_SCALE = "image"  # globally pooled maps of the image
SMALL_SCALE = "small"  # pooled maps of a copy of about `SMALL_SIDE`² pixels: coarse form, which a large image hides
POOLED_SCALES = (IMAGE_SCALE, SMALL_SCALE)
SMALL_SIDE = 64  # pixels
FINEST_STEP = 8  # pixels from one cell of a map to the next; a finer stride's cells are averaged to such a step
SHORTEST_SIDE = 32  # pixels; a copy is not made smaller, for the coarsest maps to have a cell


def reduction(height: int, width: int) -> int:
    """Choose the integer factor by which the small copy of an image at network size is reduced; 1 is no reduction."""
    return max(1, min(round(sqrt(height * width) / SMALL_SIDE), min(height, width) // SHORTEST_SIDE))


def has_small_scale(image_size: int) -> bool:
    """Whether the small copy of an image of this side, in pixels, is smaller than the image."""
    return reduction(image_size, image_size) > 1


def cell_step(name: str) -> int:
    """Return the distance of neighbouring cells of a local scale, in pixels."""
    return max(int(name), FINEST_STEP)


def scale_title(name: str) -> str:
    """Name a scale for people."""
    return {IMAGE_SCALE: "image level", SMALL_SCALE: "small copy"}.get(name, f"stride {name}")
