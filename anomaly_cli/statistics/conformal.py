"""Conformal p-values against held-out normal scores."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def conformal_p_values(normal_scores: Floats, scores: ArrayLike) -> Floats:
    """Tell how often a normal image scores as high as each of (N,) scores does.

    p = (1 + number of normal scores ≥ score) / (n + 1); for a normal image P(p ≤ t) ≤ t, whatever the distribution,
    if it is exchangeable with the held-out ones (Bates et al. 2023, equation 2).

    Args:
        normal_scores: (n,) ascending.
        scores: (N,).

    Returns:
        (N,) in [1 / (n + 1), 1].
    """
    n = len(normal_scores)
    below = np.searchsorted(normal_scores, np.asarray(scores, np.float64), side="left")
    p: Floats = (1 + n - below) / (n + 1)
    return p
