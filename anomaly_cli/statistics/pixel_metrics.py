"""Pixel AUROC and AUPRO of anomaly maps against ground-truth masks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from anomaly_cli.statistics.bootstrap import Counts

Floats = NDArray[np.float64]

FPR_LIMIT = 0.3  # upper end of the AUPRO integral
NORMAL_PIXELS, REGION_PIXELS = (
    1 << 15,
    1 << 12,
)  # kept per image and per region; larger ones are subsampled with a constant stride
TOUCHING = np.ones((3, 3), bool)  # pixels of one region touch by side or corner

Map = NDArray[np.float32]

Mask = NDArray[np.bool_]


class PixelMetrics(NamedTuple):
    """Metrics of localisation, in [0, 1]."""

    pixel_auroc: float
    aupro: float


class PixelCurves:
    """Exact ROC and PRO curves of pixels sorted once, so that each bootstrap resample costs one pass.

    An anomalous pixel of value v is detected at every false-positive rate from that of the threshold v upwards. Ties
    are interpolated linearly, between the rates just above v and at v. The area under a curve is the weighted sum
    over pixels of the range of rates at which each is detected.
    """

    def __init__(self, pairs: Iterable[tuple[Map, Mask]]) -> None:
        """Take pairs of an (H, W) map and a mask, all false for a normal image, one by one; they are not kept."""
        normals, anomalies, regions = [], [], []
        sizes, normal_weights = [], []
        for anomaly_map, mask in pairs:
            normal = anomaly_map[~mask]
            normals.append(
                normal[:: _step(len(normal), NORMAL_PIXELS)].copy()
            )  # a view would keep all pixels in memory
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
        self._normal_weights = np.array(normal_weights)  # number of pixels that each kept one represents
        kept = _numbers(anomalies)  # region of each anomalous pixel
        self._region_image, self._region_sizes = np.array(regions, np.int32)[kept], np.array(sizes)[kept]
        self._share_of_region = 1 / np.bincount(kept)[kept]
        anomalous = np.concatenate([np.zeros(0, np.float32), *anomalies])  # all masks may be empty
        self._first, self._last = (np.searchsorted(values, anomalous, side=side) for side in ("left", "right"))

    def measure(self, counts: Counts) -> PixelMetrics:
        """Compute the metrics with the (N,) multiplicities of the images."""
        below = np.concatenate([[0.0], np.cumsum((counts * self._normal_weights)[self._normal_image])])
        n = below[-1]
        start, end = (n - below[self._last]) / n, (n - below[self._first]) / n
        weights = counts[self._region_image] * self._share_of_region
        return PixelMetrics(_area(start, end, weights * self._region_sizes, 1.0), _area(start, end, weights, FPR_LIMIT))


def _step(count: int, limit: int) -> int:
    """Stride that keeps about `limit` of `count` pixels; odd, so that it does not align with the rows of a map."""
    return -(-count // limit) | 1


def _numbers(parts: Sequence[Map]) -> NDArray[np.int32]:
    return np.repeat(np.arange(len(parts), dtype=np.int32), [len(part) for part in parts])


def _area(start: Floats, end: Floats, weights: Floats, fpr_limit: float) -> float:
    """Area under the weighted true-positive rate over the false-positive rate, up to `fpr_limit`.

    Args:
        start: (m,) false-positive rate just above the value of each anomalous pixel.
        end: (m,) false-positive rate at its value.
        weights: (m,) ≥ 0.
        fpr_limit: in (0, 1].

    Returns:
        Area divided by `fpr_limit`, in [0, 1].
    """
    ramp = np.minimum(end, fpr_limit) - np.minimum(start, fpr_limit)
    reached = np.divide(
        ramp, end - start, out=np.zeros_like(ramp), where=end > start
    )  # fraction of the ramp below the limit
    found = fpr_limit - np.minimum(end, fpr_limit) + ramp * reached / 2
    return float(found @ weights / weights.sum() / fpr_limit)
