"""Metrics of a ranking against labels."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

RECALL = 0.95

Floats = NDArray[np.float64]


class ImageMetrics(NamedTuple):
    """Metrics of a ranking, in [0, 1]."""

    image_auroc: float
    average_precision: float
    f1_max: float  # largest F1 over all thresholds
    fpr_at_95_recall: float  # false-positive rate at the highest threshold with recall ≥ 95 %


def image_metrics(anomalous: ArrayLike, scores: ArrayLike) -> ImageMetrics:
    """Compute the metrics of (N,) scores against (N,) labels; both classes must occur."""
    precision, recall, _ = precision_recall_curve(anomalous, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    fpr, tpr, _ = roc_curve(anomalous, scores, drop_intermediate=False)
    return ImageMetrics(
        float(roc_auc_score(anomalous, scores)),
        float(average_precision_score(anomalous, scores)),
        float(f1.max()),
        float(fpr[tpr >= RECALL].min()),
    )


def precision_at(anomalous: ArrayLike, scores: ArrayLike, k: int) -> float:
    """Precision among the k highest scores; its expectation over random orders of ties."""
    labels, values = np.asarray(anomalous, np.float64), np.asarray(scores, np.float64)
    last = np.sort(values)[-k]
    above, tied = values > last, values == last
    return float((labels[above].sum() + (k - above.sum()) * labels[tied].mean()) / k)
