"""Confidence intervals: stratified bootstrap and exact binomial."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

CONFIDENCE = 0.95  # of an interval
DRAWS, PIXEL_DRAWS = 1_000, 200  # of the bootstrap


Counts = NDArray[np.int64]  # (N,) how often each image counts


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
