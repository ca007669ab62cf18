"""Pixel AUROC and AUPRO of anomaly maps against ground-truth masks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from anomaly_cli.statistics.bootstrap import Counts

Floats = NDArray[np.float64]


FPR_LIMIT = 0.3
NORMAL_PIXELS, REGION_PIXELS = 1 << 15, 1 << 12  # kept of an image and of a region: thinned out evenly beyond
TOUCHING = np.ones((3, 3), bool)  # pixels of one region touch by side or corner


Map = NDArray[np.float32]


Mask = NDArray[np.bool_]


class PixelMetrics(NamedTuple):
    """How well anomaly maps find the masks, in [0, 1]."""

    pixel_auroc: float
    aupro: float


def pixel_metrics(maps: Sequence[Map], masks: Sequence[Mask], fpr_limit: float = FPR_LIMIT) -> PixelMetrics:
    """Measure anomaly maps against masks of the same sizes; each pair may have a size of its own.

    Args:
        maps: (H, W) each.
        masks: (H, W) each, all false for a normal image.
        fpr_limit: end of the AUPRO integral.
    """
    pairs = zip(maps, masks, strict=True)
    return PixelCurves(pairs).measure(np.ones(len(maps), np.int64), fpr_limit)


class PixelCurves:
    """The pixels of some images in the order of their values, so that images may be drawn anew at little cost.

    A pixel of value v is found from the false-positive rate on that v as threshold gives. Among equal values the
    curve is a straight line, so the pixel counts by degrees between the rates just above v and at v. An area under
    the curve is the sum over pixels of how long each is found: no thresholds have to be chosen.
    """

    def __init__(self, pairs: Iterable[tuple[Map, Mask]]) -> None:
        """Take (H, W) maps with masks of the same sizes, one by one; they are not kept."""
        normals, anomalies, regions = [], [], []
        sizes, normal_weights = [], []
        for anomaly_map, mask in pairs:
            normal = anomaly_map[~mask]
            normals.append(normal[:: _step(len(normal), NORMAL_PIXELS)].copy())  # a view would keep all pixels
            normal_weights.append(len(normal) / max(len(normals[-1]), 1))
            labels, _ = ndimage.label(mask, TOUCHING)
            for where in ndimage.value_indices(labels, ignore_value=0).values():
                region = anomaly_map[where]
                anomalies.append(region[:: _step(len(region), REGION_PIXELS)].copy())
                regions.append(len(normals) - 1)
                sizes.append(len(region))
        values = np.concatenate(normals)
        order = np.argsort(values)
        values = values[order]
        self._normal_image = _numbers(normals)[order]
        self._normal_weights = np.array(normal_weights)  # pixels of the image that each of its kept ones stands for
        kept = _numbers(anomalies)  # region of each anomalous pixel
        self._region_image, self._region_sizes = np.array(regions, np.int32)[kept], np.array(sizes)[kept]
        self._share_of_region = 1 / np.bincount(kept)[kept]
        anomalous = np.concatenate([np.zeros(0, np.float32), *anomalies])  # perhaps no mask has any
        self._first, self._last = (np.searchsorted(values, anomalous, side=side) for side in ("left", "right"))

    def measure(self, counts: Counts, fpr_limit: float = FPR_LIMIT) -> PixelMetrics:
        """Measure with (N,) how often each image counts."""
        below = np.concatenate([[0.0], np.cumsum((counts * self._normal_weights)[self._normal_image])])
        n = below[-1]
        start, end = (n - below[self._last]) / n, (n - below[self._first]) / n
        weights = counts[self._region_image] * self._share_of_region
        return PixelMetrics(_area(start, end, weights * self._region_sizes, 1.0), _area(start, end, weights, fpr_limit))


def _step(count: int, limit: int) -> int:
    """Keep every how many of `count` in a row, so that about `limit` stay; odd, so that rows of a map take turns."""
    return -(-count // limit) | 1


def _numbers(parts: Sequence[Map]) -> NDArray[np.int32]:
    return np.repeat(np.arange(len(parts), dtype=np.int32), [len(part) for part in parts])


def _area(start: Floats, end: Floats, weights: Floats, fpr_limit: float) -> float:
    """Area under the weighted share of anomalous pixels found over the share of normal pixels, up to `fpr_limit`.

    Args:
        start: (m,) false-positive rate from which a pixel begins to be found.
        end: (m,) rate at which it is found.
        weights: (m,) ≥ 0.
        fpr_limit: in (0, 1].

    Returns:
        In [0, 1]: divided by `fpr_limit`.
    """
    ramp = np.minimum(end, fpr_limit) - np.minimum(start, fpr_limit)
    reached = np.divide(ramp, end - start, out=np.zeros_like(ramp), where=end > start)  # of the ramp, below the limit
    found = fpr_limit - np.minimum(end, fpr_limit) + ramp * reached / 2
    return float(found @ weights / weights.sum() / fpr_limit)
