"""Where an image is anomalous: turns an anomaly map into boxes and masks; knows nothing of files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from anomaly_cli.config import RegionRule
from anomaly_cli.scoring.outlines import outline_of
from anomaly_cli.tables.row import RegionRow

TOUCHING = np.ones((3, 3))  # cells that share a side or a corner are connected
Map = NDArray[np.floating[Any]]


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
        labels, _ = ndimage.label(anomaly_map >= max(min(limit, peak), peak / 2), structure=TOUCHING)
        region = labels == labels[top, left]
    else:  # the map is 0 everywhere
        region = np.zeros((h, w), dtype=bool)
        region[top, left] = True
    rows, columns = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
    y, bottom = _pixels(rows, h, image_height)
    x, right = _pixels(columns, w, image_width)
    return Region(x, y, right - x, bottom - y, float(region.mean()))


def find_regions(
    anomaly_map: Map, top_scales: NDArray[np.uint8], names: Sequence[str], rule: RegionRule, size: tuple[int, int]
) -> tuple[RegionRow, ...]:
    """Find all regions: connected cells (by sides or corners) at or above the threshold of the rule.

    Args:
        anomaly_map: (h, w), >= 0, 1.0 = the limit of normal.
        top_scales: (h, w) index in `names` of the scale that adds most to each cell.
        names: of the scales.
        rule: threshold, smallest area, and whether outlines are wanted.
        size: height and width of the original image that the map covers, pixels.

    Returns:
        Highest peak first, equal ones in reading order. Boxes are rounded outwards to whole pixels.
    """
    inside = anomaly_map >= rule.threshold
    if not inside.any():
        return ()
    H, W = size
    h, w = anomaly_map.shape
    labels, count = ndimage.label(inside, structure=TOUCHING)
    cells = np.flatnonzero(inside)
    region_of, values = labels.ravel()[cells] - 1, anomaly_map.ravel()[cells].astype(np.float64)
    cell_counts = np.bincount(region_of)
    means = np.bincount(region_of, values) / cell_counts
    falling = np.lexsort((cells, -values))
    peaks = falling[np.unique(region_of[falling], return_index=True)[1]]  # the first of each region
    boxes = ndimage.find_objects(labels)
    found = []
    for i in sorted(range(count), key=lambda i: (-values[peaks[i]], cells[peaks[i]])):
        fraction = int(cell_counts[i]) / (h * w)
        area = max(1, round(fraction * H * W))
        if area < rule.min_area:
            continue
        rows, columns = boxes[i]
        y, bottom = _reach(rows.start, rows.stop, h, H)
        x, right = _reach(columns.start, columns.stop, w, W)
        scale = names[int(top_scales.ravel()[cells[peaks[i]]])]
        outline = outline_of(labels == i + 1, H, W) if rule.outlined else ()
        box = x, y, right - x, bottom - y
        found.append(RegionRow(*box, area, fraction, float(values[peaks[i]]), float(means[i]), scale, outline))
    return tuple(found)


def region_mask(cells: NDArray[np.bool_], image_height: int, image_width: int) -> NDArray[np.bool_]:
    """Enlarge (h, w) cells to the pixels of the image: (H, W), true for each pixel that one of them reaches into."""
    across = _reached(cells, image_width)
    return _reached(across.T, image_height).T


def region_cells(anomaly_map: Map, rule: RegionRule, image_height: int, image_width: int) -> NDArray[np.bool_]:
    """Mark the cells of all regions that `find_regions` finds: (h, w)."""
    inside: NDArray[np.bool_] = anomaly_map >= rule.threshold
    if not rule.min_area:
        return inside
    labels, _ = ndimage.label(inside, structure=TOUCHING)
    areas = np.bincount(labels.ravel()) / labels.size * image_height * image_width
    kept: NDArray[np.bool_] = inside & (np.maximum(1, np.rint(areas)) >= rule.min_area)[labels]
    return kept


def _reached(cells: NDArray[np.bool_], pixel_count: int) -> NDArray[np.bool_]:
    """Enlarge (n, w) cells to (n, pixel_count): the pixels of a row that its true cells reach into."""
    n, w = cells.shape
    before = np.concatenate([np.zeros((n, 1), np.int64), cells.cumsum(axis=1)], axis=1)  # true cells left of each edge
    pixels = np.arange(pixel_count)
    first, end = pixels * w // pixel_count, -(-(pixels + 1) * w // pixel_count)
    reached: NDArray[np.bool_] = before[:, end] > before[:, first]
    return reached


def _pixels(cells: NDArray[np.intp], cell_count: int, pixel_count: int) -> tuple[int, int]:
    """Convert the first and last cell to the pixels from and up to which they reach, rounding outwards."""
    return _reach(int(cells[0]), int(cells[-1]) + 1, cell_count, pixel_count)


def _reach(first: int, end: int, cell_count: int, pixel_count: int) -> tuple[int, int]:
    return first * pixel_count // cell_count, -(-end * pixel_count // cell_count)
