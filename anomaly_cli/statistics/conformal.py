"""Conformal p-values against held-out normal scores."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def conformal_p_values(normal_scores: Floats, scores: ArrayLike) -> Floats:
    """Compute conformal p-values: p = (1 + number of normal scores ≥ score) / (n + 1).

    For a normal image exchangeable with the held-out ones P(p ≤ t) ≤ t, whatever the distribution of scores (Bates et
    al. 2023, equation 2).

    Args:
        normal_scores: (n,) scores of held-out normal images, ascending.
        scores: (N,) scores to test.

    Returns:
        (N,) in [1 / (n + 1), 1].
    """
    n = len(normal_scores)
    below = np.searchsorted(normal_scores, np.asarray(scores, np.float64), side="left")
    p: Floats = (1 + n - below) / (n + 1)
    return p
