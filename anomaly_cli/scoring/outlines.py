"""The outline of a region as polygons, as labelling tools read them (COCO)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from anomaly_cli.tables.row import Outline

Corner = tuple[int, int]  # x, y on the grid of the cells
Mask = NDArray[np.bool_]


def outline_of(region: Mask, image_height: int, image_width: int) -> Outline:
    """Outline the true cells of an (h, w) grid that covers an image.

    COCO has no holes: a part with one is given as rectangles, all others as one polygon each. Parts that touch at a
    corner only are parts of their own.

    Returns:
        Polygons x1, y1, x2, y2, … in pixels; they do not overlap, and together are the cells.
    """
    h, w = region.shape
    parts, count = ndimage.label(region)
    polygons: list[list[Corner]] = []
    for part in range(1, count + 1):
        loops = _loops(parts == part)
        polygons += loops if len(loops) == 1 else _rectangles(parts == part)
    across, down = image_width / w, image_height / h
    return tuple(
        tuple(value for x, y in polygon for value in (round(x * across, 2), round(y * down, 2))) for polygon in polygons
    )


def _loops(part: Mask) -> list[list[Corner]]:
    """Follow the edges of a part whose cells are connected by sides: its boundary, and one loop for each hole."""
    steps: dict[Corner, list[Corner]] = {}
    padded = np.pad(part, 1)
    for dy, dx, start, end in (
        (-1, 0, (0, 0), (1, 0)),
        (0, 1, (1, 0), (1, 1)),
        (1, 0, (1, 1), (0, 1)),
        (0, -1, (0, 1), (0, 0)),
    ):  # a side with no cell beyond it, clockwise
        for y, x in np.argwhere(padded & ~np.roll(padded, (-dy, -dx), (0, 1))).tolist():
            steps.setdefault((x + start[0], y + start[1]), []).append((x + end[0], y + end[1]))
    loops = []
    while steps:
        first = next(iter(steps))
        loop, at, heading = [first], first, (0, 0)
        while True:
            to = _turn_right(steps, at, heading)
            heading, at = (to[0] - at[0], to[1] - at[1]), to
            if at == first:
                break
            loop.append(at)
        loops.append([(x - 1, y - 1) for x, y in _without_straight_corners(loop)])
    return loops


def _turn_right(steps: dict[Corner, list[Corner]], at: Corner, heading: Corner) -> Corner:
    """Take the next edge from a corner; where two cells touch there, the one of the same cell."""
    choices = steps[at]
    right = at[0] - heading[1], at[1] + heading[0]
    to = right if right in choices else choices[0]
    choices.remove(to)
    if not choices:
        del steps[at]
    return to


def _without_straight_corners(loop: list[Corner]) -> list[Corner]:
    around = zip(loop[-1:] + loop[:-1], loop, loop[1:] + loop[:1], strict=True)
    return [at for before, at, after in around if before[0] != after[0] and before[1] != after[1]]


def _rectangles(part: Mask) -> list[list[Corner]]:
    """Cut a part into rectangles: runs of cells of a row, joined with equal ones below."""
    done: list[tuple[int, int, int, int]] = []
    open_runs: dict[tuple[int, int], int] = {}  # left and right end, first row
    for y, row in enumerate([*part, np.zeros(part.shape[1], bool)]):
        ends = np.flatnonzero(np.diff(np.pad(row.astype(np.int8), 1))).tolist()
        runs = set(zip(ends[::2], ends[1::2], strict=True))
        done += [(left, top, right, y) for (left, right), top in open_runs.items() if (left, right) not in runs]
        open_runs = {run: open_runs.get(run, y) for run in runs}
    return [[(left, top), (right, top), (right, bottom), (left, bottom)] for left, top, right, bottom in sorted(done)]
