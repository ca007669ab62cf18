"""Names and grids of the scales.

Local scales are named by their stride, those of a transformer by the block that they come from, since all have one
stride. Five more see an image coarsely or as a whole.
"""

from __future__ import annotations

from math import sqrt

IMAGE_SCALE = "image"  # globally pooled maps of the image
SMALL_SCALE = "small"  # pooled maps of a copy of about `SMALL_SIDE`² pixels: coarse form, which a large image hides
TURNED_SCALE = "turned"  # how unsure a network from scratch is of the turn of turned copies
LEARNED_SCALE = "learned"  # embedding of those copies by that network
COARSE_SCALE = "coarse"  # cells of `COARSE_STRIDE` of that copy, or of the image where it is no larger
POOLED_SCALES = (IMAGE_SCALE, SMALL_SCALE)
WHOLE_SCALES = (*POOLED_SCALES, TURNED_SCALE, LEARNED_SCALE)  # of one cell
SMALL_SIDE = 128  # pixels
TURNED_SIDE = 64  # pixels, of the copies that are turned, and of the views that `scratch` learns from
COPY_SIDES = {SMALL_SCALE: SMALL_SIDE, TURNED_SCALE: TURNED_SIDE}  # of the scales that see a reduced copy
COARSE_STRIDE = 16  # pixels of the copy
FINEST_STEP = 8  # pixels from one cell of a map to the next; a finer stride's cells are averaged to such a step
SHORTEST_SIDE = 32  # pixels; a copy is not made smaller, for the coarsest maps to have a cell
BLOCK = "block_"  # with a number, the local scale of a block of a transformer


def reduction(height: int, width: int, side: int = SMALL_SIDE) -> int:
    """Choose the integer factor that reduces an image at network size to a copy of about side²; 1 is no reduction."""
    return max(1, min(round(sqrt(height * width) / side), min(height, width) // SHORTEST_SIDE))


def has_small_scale(image_size: int) -> bool:
    """Whether the small copy of an image of this side, in pixels, is smaller than the image."""
    return reduction(image_size, image_size) > 1


def is_local(name: str) -> bool:
    """Whether the scale is one of those that the anomaly map is fused from."""
    return name not in (*WHOLE_SCALES, COARSE_SCALE)


def cell_step(name: str, height: int, width: int, stride: int | None = None) -> int:
    """Return the distance of neighbouring cells of a scale that is not pooled.

    Args:
        name: of the scale.
        height: of the image, pixels.
        width: likewise.
        stride: of the map that the cells come from, pixels of the image, or for the coarse cells of the copy; None
            where it names the scale, or is `COARSE_STRIDE`.
    """
    if stride is None:
        stride = COARSE_STRIDE if name == COARSE_SCALE else int(name)
    return stride * reduction(height, width) if name == COARSE_SCALE else max(stride, FINEST_STEP)


def scale_title(name: str) -> str:
    """Name a scale for people."""
    titles = {
        IMAGE_SCALE: "image level",
        SMALL_SCALE: "small copy",
        TURNED_SCALE: "turned copies",
        LEARNED_SCALE: "learned embedding",
        COARSE_SCALE: "coarse cells",
    }
    return titles.get(name) or (name.replace("_", " ") if name.startswith(BLOCK) else f"stride {name}")
