"""Measures of ranking and localisation from scores and ground truth; knows nothing of files or detectors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage, stats
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

FPR_LIMIT = 0.3
CONFIDENCE = 0.95  # of an interval
DRAWS, PIXEL_DRAWS = 1_000, 200  # of the bootstrap
RECALL = 0.95
NORMAL_PIXELS, REGION_PIXELS = 1 << 15, 1 << 12  # kept of an image and of a region: thinned out evenly beyond
TOUCHING = np.ones((3, 3), bool)  # pixels of one region touch by side or corner

Map = NDArray[np.float32]
Mask = NDArray[np.bool_]
Counts = NDArray[np.int64]  # (N,) how often each image counts
Floats = NDArray[np.float64]


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


def precision_at(anomalous: ArrayLike, scores: ArrayLike, k: int) -> float:
    """Share of anomalous images among the k of highest score; where scores tie, what is to be expected."""
    labels, values = np.asarray(anomalous, np.float64), np.asarray(scores, np.float64)
    last = np.sort(values)[-k]
    above, tied = values > last, values == last
    return float((labels[above].sum() + (k - above.sum()) * labels[tied].mean()) / k)


def bootstrap(
    measure: Callable[[Counts], Sequence[float]], anomalous: ArrayLike, draws: int = DRAWS, seed: int = 0
) -> list[tuple[float, float]]:
    """Give each of several figures an interval by drawing images anew, with replacement, within each class.

    Percentile bootstrap (Efron & Tibshirani 1993).

    Args:
        measure: takes how often each of the N images was drawn, gives the figures.
        anomalous: (N,) labels; both classes must occur.
        draws: of all images.
        seed: of the draws.

    Returns:
        (low, high) of each figure: `CONFIDENCE` of the draws lie between them.
    """
    labels = np.asarray(anomalous, bool)
    rng = np.random.default_rng(seed)
    figures = []
    for _ in range(draws):
        counts = np.zeros(len(labels), np.int64)
        for images in (np.flatnonzero(labels), np.flatnonzero(~labels)):
            counts += np.bincount(rng.choice(images, len(images)), minlength=len(labels))
        figures.append(measure(counts))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(np.array(figures, np.float64), (tail, 1 - tail), axis=0)
    return list(zip(low.tolist(), high.tolist(), strict=True))


def share_interval(hits: int, count: int) -> tuple[float, float]:
    """Give the exact interval of a share, `hits` of `count` (Clopper & Pearson 1934)."""
    low, high = stats.binomtest(hits, count).proportion_ci(CONFIDENCE)
    return float(low), float(high)


def pixel_metrics(maps: Sequence[Map], masks: Sequence[Mask], fpr_limit: float = FPR_LIMIT) -> PixelMetrics:
    """Measure anomaly maps against masks of the same sizes; each pair may have a size of its own.

    Args:
        maps: (H, W) each.
        masks: (H, W) each, all false for a normal image.
        fpr_limit: end of the AUPRO integral.
    """
    pairs = zip(maps, masks, strict=True)
    return PixelRanking(pairs).measure(np.ones(len(maps), np.int64), fpr_limit)


class PixelRanking:
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
