"""Confidence intervals: stratified percentile bootstrap and exact binomial."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

CONFIDENCE = 0.95  # of an interval
DRAWS, PIXEL_DRAWS = 1_000, 200  # of the bootstrap


Counts = NDArray[np.int64]  # (N,) multiplicity of each image in a resample


def bootstrap(
    measure: Callable[[Counts], Sequence[float]], anomalous: ArrayLike, draws: int = DRAWS, seed: int = 0
) -> list[tuple[float, float]]:
    """Compute bootstrap percentile intervals of several figures (Efron & Tibshirani 1993).

    Images are resampled with replacement within each class.

    Args:
        measure: maps the (N,) multiplicities of a resample to the figures.
        anomalous: (N,) labels; both classes must occur.
        draws: number of resamples.
        seed: of the random numbers.

    Returns:
        (low, high) of each figure: `CONFIDENCE` of the resamples lie between them.
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
    """Compute the exact binomial interval of `hits` out of `count` (Clopper & Pearson 1934)."""
    low, high = stats.binomtest(hits, count).proportion_ci(CONFIDENCE)
    return float(low), float(high)
