"""Drift: test whether the bulk of a batch is distributed as the held-out normal images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr

from anomaly_cli.config import MIN_BATCH

Floats = NDArray[np.float64]

BULK = 0.7  # quantile of the normal images below which an image belongs to the bulk
# Tolerated standard deviation of the mean rank of the bulk, upwards and downwards: the memory in use was fitted on more
# images than those that scored the held-out images (docs/statistics.md).
TOLERANCE_UP, TOLERANCE_DOWN = 0.04, 0.08
MIN_BULK = 5  # fewest images for a mean rank
LARGEST_SHARE = 0.5  # of anomalies; a smaller bulk than this leaves is drift
DRIFT_LEVEL = 0.01  # significance level


@dataclass(frozen=True)
class Drift:
    """Result of the test for drift.

    Attributes:
        p_value: Bonferroni-corrected for the number of tests; insensitive to single anomalies.
        scale: index of the scale with the largest test statistic.
        nearer: whether the batch lies nearer to the memory at that scale than new normal images do.
    """

    p_value: float
    scale: int
    nearer: bool

    @property
    def found(self) -> bool:
        """Whether the test rejects."""
        return self.p_value <= DRIFT_LEVEL


def drift(normal: ArrayLike, batch: ArrayLike) -> Drift | None:
    """Test whether a batch comes from the same source as the normal images, whatever anomalies it contains.

    Two tests per scale on the bulk, the images below the `BULK` quantile of the normal scores: a two-sided Wilcoxon
    rank-sum test against the normal images below it, and a one-sided test whether the bulk holds fewer images than a
    share `LARGEST_SHARE` of anomalies would leave. Bonferroni correction over all tests.

    Args:
        normal: (n, S) scores of held-out normal images, one column per scale.
        batch: (N, S) scores of the batch.

    Returns:
        None if either has fewer than `MIN_BATCH` images.
    """
    known, found = np.asarray(normal, np.float64), np.asarray(batch, np.float64)
    if min(len(known), len(found)) < MIN_BATCH:
        return None
    z = np.array([_bulk_tests(*columns) for columns in zip(known.T, found.T, strict=True)])  # (S, 2)
    p = np.minimum(2 * ndtr(-np.abs(z[:, 0])), ndtr(-z[:, 1]))
    # Not the smallest p: several may underflow to zero.
    most = int(np.maximum(np.abs(z[:, 0]), z[:, 1]).argmax())
    return Drift(float(min(1.0, p.min() * z.size)), most, bool(-z[most, 0] > z[most, 1]))


def _bulk_tests(normal: Floats, batch: Floats) -> tuple[float, float]:
    """Compare the bulk of one scale, (n,) with (N,): z-scores of its mean rank and of its missing share."""
    n, N = len(normal), len(batch)
    end = np.quantile(normal, BULK)
    known, found = np.sort(normal[normal <= end]), np.sort(batch[batch <= end])
    m, M = len(known), len(found)
    left = BULK * (1 - LARGEST_SHARE)
    missing = (left - M / N) / np.sqrt(left * (1 - left) / N + (1 - LARGEST_SHARE) ** 2 * BULK * (1 - BULK) / n)
    if min(m, M) < MIN_BULK:
        return 0.0, float(missing)
    ranks = (np.searchsorted(known, found, "left") + np.searchsorted(known, found, "right")) / (2 * m)  # mid-ranks
    moved = ranks.mean() - 0.5
    tolerance = TOLERANCE_UP if moved > 0 else TOLERANCE_DOWN
    return float(moved / np.sqrt((1 / m + 1 / M) / 12 + tolerance**2)), float(missing)
