"""Confidence intervals: stratified percentile bootstrap and exact binomial."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from anomaly_cli.statistics.interval import Interval

CONFIDENCE = 0.95  # of an interval
DRAWS, PIXEL_DRAWS = 1_000, 200  # of the bootstrap

Counts = NDArray[np.int64]  # (N,) multiplicity of each image in a resample


def bootstrap(measure: Callable[[Counts], Sequence[float]], anomalous: ArrayLike, draws: int = DRAWS) -> list[Interval]:
    """Estimate several figures with bootstrap percentile intervals (Efron & Tibshirani 1993).

    Images are resampled with replacement within each class, by a fixed seed.

    Args:
        measure: maps the (N,) multiplicities of a resample to the figures, each in [0, 1].
        anomalous: (N,) labels; both classes must occur.
        draws: number of resamples.

    Returns:
        Each figure of all images once; `CONFIDENCE` of the resamples lie in its interval.
    """
    labels = np.asarray(anomalous, bool)
    N, rng, figures = len(labels), np.random.default_rng(0), []
    for _ in range(draws):  # sklearn.utils.resample does the same in thirty times the time
        drawn = [rng.choice(images, len(images)) for images in (np.flatnonzero(labels), np.flatnonzero(~labels))]
        figures.append(measure(np.bincount(np.concatenate(drawn), minlength=N)))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(np.array(figures, np.float64), (tail, 1 - tail), axis=0).tolist()
    return [Interval(*each) for each in zip(measure(np.ones(N, np.int64)), low, high, strict=True)]


def proportion(hits: int, count: int) -> Interval:
    """Estimate a binomial proportion with its exact interval (Clopper & Pearson 1934)."""
    low, high = stats.binomtest(hits, count).proportion_ci(CONFIDENCE)
    return Interval(hits / count, float(low), float(high))
