"""Measures of ranking and localisation from scores and ground truth; knows nothing of files or detectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

FPR_LIMIT = 0.3
RECALL = 0.95
TOUCHING = np.ones((3, 3), bool)  # pixels of one region touch by side or corner

Map = NDArray[np.float32]
Mask = NDArray[np.bool_]


class ImageMetrics(NamedTuple):
    """How well image scores rank anomalous images above normal ones, all in [0, 1]."""

    image_auroc: float
    average_precision: float
    f1_max: float  # the best F1 of any threshold
    fpr_at_95_recall: float  # the lowest share of normal images above a threshold that finds 95 % of the anomalies


class PixelMetrics(NamedTuple):
    """How well anomaly maps find the masks, in [0, 1]."""

    pixel_auroc: float
    aupro: float


def image_metrics(anomalous: ArrayLike, scores: ArrayLike) -> ImageMetrics:
    """Measure (N,) image scores against (N,) labels; both classes must occur."""
    precision, recall, _ = precision_recall_curve(anomalous, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    fpr, tpr, _ = roc_curve(anomalous, scores, drop_intermediate=False)
    return ImageMetrics(
        float(roc_auc_score(anomalous, scores)),
        float(average_precision_score(anomalous, scores)),
        float(f1.max()),
        float(fpr[tpr >= RECALL].min()),
    )


def pixel_metrics(maps: Sequence[Map], masks: Sequence[Mask], fpr_limit: float = FPR_LIMIT) -> PixelMetrics:
    """Measure anomaly maps against masks of the same sizes; each pair may have a size of its own.

    Args:
        maps: (H, W) each.
        masks: (H, W) each, all false for a normal image.
        fpr_limit: end of the AUPRO integral.
    """
    normal = np.sort(np.concatenate([m[~mask] for m, mask in zip(maps, masks, strict=True)]))
    values, weights = [], []
    for anomaly_map, mask in zip(maps, masks, strict=True):
        regions, _ = ndimage.label(mask, TOUCHING)
        sizes = np.bincount(regions[mask])
        values.append(anomaly_map[mask])
        weights.append(1 / sizes[regions[mask]])
    anomalous = np.concatenate(values)
    aupro = _area(normal, anomalous, np.concatenate(weights), fpr_limit)
    return PixelMetrics(_area(normal, anomalous, np.ones(len(anomalous)), 1.0), aupro)


def _area(normal: Map, anomalous: Map, weights: NDArray[np.float64], fpr_limit: float) -> float:
    """Area under the weighted share of anomalous pixels found over the share of normal pixels, up to `fpr_limit`.

    A pixel of value v is found from the false-positive rate on that v as threshold gives. Among equal values the
    curve is a straight line, so the pixel counts by degrees between the rates just above v and at v. The area is
    the sum over pixels of how long each is found: no thresholds have to be chosen.

    Args:
        normal: (n,) ascending.
        anomalous: (m,).
        weights: (m,) of the anomalous pixels, > 0.
        fpr_limit: in (0, 1].

    Returns:
        In [0, 1]: divided by `fpr_limit`.
    """
    n = len(normal)
    start = (n - np.searchsorted(normal, anomalous, side="right")) / n
    end = (n - np.searchsorted(normal, anomalous, side="left")) / n
    ramp = np.minimum(end, fpr_limit) - np.minimum(start, fpr_limit)
    reached = ramp / np.maximum(end - start, 1 / n)  # share of the ramp that lies below the limit
    found = fpr_limit - np.minimum(end, fpr_limit) + ramp * reached / 2
    return float(found @ weights / weights.sum() / fpr_limit)
