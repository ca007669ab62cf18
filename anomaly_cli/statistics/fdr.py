"""Control of the false discovery rate: Benjamini-Hochberg q-values with Storey's estimate."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

STOREY_LAMBDA = 0.5


def null_proportion(p_values: ArrayLike) -> float:
    """Estimate the null proportion π₀, the share of normal images, from (N,) p-values; conservative, in (0, 1].

    Storey's estimator with the finite-sample correction (Storey, Taylor, Siegmund 2004): p-values of normal images are
    uniform, and few anomalies have p > `STOREY_LAMBDA`.
    """
    p = np.asarray(p_values, np.float64)
    return float(min(1.0, (1 + (p > STOREY_LAMBDA).sum()) / (len(p) * (1 - STOREY_LAMBDA))))


def q_values(p_values: ArrayLike) -> Floats:
    """Compute q-values: flagging all q ≤ α keeps the false discovery rate at most α.

    Benjamini-Hochberg adjusted p-values times the estimated null proportion; valid with conformal p-values (Bates et
    al. 2023, section 2.3).

    Args:
        p_values: (N,) in (0, 1].

    Returns:
        (N,) in (0, 1].
    """
    p = np.asarray(p_values, np.float64)
    if len(p) == 0:
        return p
    # Not scipy.stats.false_discovery_control: importing scipy.stats takes a second.
    order = np.argsort(p)[::-1]
    stepped = p[order] * len(p) / np.arange(len(p), 0, -1)
    q = np.empty_like(p)
    q[order] = np.minimum(np.minimum.accumulate(stepped), 1) * null_proportion(p)
    return q
