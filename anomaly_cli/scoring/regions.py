"""Where an image is most anomalous: turns an anomaly map into one box; knows nothing of images or tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage


@dataclass(frozen=True)
class Region:
    """Box around a connected region, in pixels of the original image."""

    x: int  # left edge
    y: int  # top edge
    width: int
    height: int
    fraction: float  # of the cells of the anomaly map that the region itself covers, in (0, 1]


def peak_region(anomaly_map: NDArray[np.floating[Any]], limit: float, image_height: int, image_width: int) -> Region:
    """Find the region around the peak of an anomaly map.

    A region is a connected component (sides or corners) above a level that grows with the peak: of a normal
    image just the peak cell, of an anomalous one all that exceeds the limit, and of a strong anomaly what
    exceeds half the peak, so that the faint halo around it does not enlarge the box.

    Args:
        anomaly_map: (h, w), >= 0; any resolution.
        limit: the limit of normal, in the unit of the map.
        image_height: pixels of the original image that the map covers.
        image_width: likewise.
    """
    h, w = anomaly_map.shape
    top, left = np.unravel_index(np.argmax(anomaly_map), (h, w))  # the first of equals, in reading order
    peak = float(anomaly_map[top, left])
    if peak > 0:
        labels, _ = ndimage.label(anomaly_map >= max(min(limit, peak), peak / 2), structure=np.ones((3, 3)))
        region = labels == labels[top, left]
    else:  # the map is 0 everywhere
        region = np.zeros((h, w), dtype=bool)
        region[top, left] = True
    rows, columns = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
    y, bottom = _pixels(rows, h, image_height)
    x, right = _pixels(columns, w, image_width)
    return Region(x, y, right - x, bottom - y, float(region.mean()))


def _pixels(cells: NDArray[np.intp], cell_count: int, pixel_count: int) -> tuple[int, int]:
    """Convert the first and last cell to the pixels from and up to which they reach, rounding outwards."""
    first, last = int(cells[0]), int(cells[-1])
    return first * pixel_count // cell_count, -(-(last + 1) * pixel_count // cell_count)
