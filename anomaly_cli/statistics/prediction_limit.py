"""The limit of normal: an upper prediction limit for the 99th percentile of normal scores."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtrit

LIMIT_QUANTILE = 0.99  # quantile of normal images at the limit of normal
MIN_SPREAD = 1e-6  # avoids division by zero for identical normal images

Floats = NDArray[np.float64]


def normal_limit(values: ArrayLike) -> float:
    """Estimate the 99th percentile of normal values conservatively.

    The larger of two estimates: the conformal order statistic ⌈0.99 (n + 1)⌉ (the largest value when n < 99), and
    the one-sided 99 % prediction limit of a normal distribution for the next value (Student's t, n − 1 degrees
    of freedom), which lies above the largest value when n is small.

    Args:
        values: (n,) raw deviations of held-out normal images, n ≥ 2.
    """
    ordered = np.sort(np.asarray(values, np.float64))
    n = len(ordered)
    rank = min(int(np.ceil(LIMIT_QUANTILE * (n + 1))), n)
    reach = stdtrit(n - 1, LIMIT_QUANTILE) * np.sqrt(1 + 1 / n)  # quantile of Student's t
    predicted = ordered.mean() + reach * ordered.std(ddof=1)
    return float(max(ordered[rank - 1], predicted))
