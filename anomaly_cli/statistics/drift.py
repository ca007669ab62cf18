"""Drift: whether the normal part of a batch still looks like the normal images of the training."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr

from anomaly_cli.config import MIN_BATCH

Floats = NDArray[np.float64]


BULK = 0.7  # share of the normal images that make up the bulk, where there are next to no anomalies
# Of the mean rank of the bulk, upwards and downwards: the memory in use measures a little differently from those that
# measured the held-out images, and knows more images than they did (docs/statistics.md).
TOLERANCE_UP, TOLERANCE_DOWN = 0.04, 0.08
MIN_BULK = 5  # images that a mean rank is taken of
LARGEST_SHARE = 0.5  # of anomalies; where less of the bulk is left than this leaves, the batch itself is another
DRIFT_LEVEL = 0.01  # a batch from the same source is called drifted at most this often


@dataclass(frozen=True)
class Drift:
    """Whether a batch comes from another source than the normal images.

    Attributes:
        p_value: corrected for the number of scales; anomalies among the images do not make it small.
        scale: number of the scale that differs most.
        nearer: whether the batch lies nearer to the memory there than new normal images do.
    """

    p_value: float
    scale: int
    nearer: bool

    @property
    def found(self) -> bool:
        """Whether the batch differs."""
        return self.p_value <= DRIFT_LEVEL


def drift(normal: ArrayLike, batch: ArrayLike) -> Drift | None:
    """Test whether a batch comes from the same source as the normal images, whatever anomalies are in it.

    Every scale by two tests that single anomalies do not touch: whether the images below the `BULK` quantile of
    normal are distributed as the normal ones below it (rank sum of Wilcoxon, on both sides), and whether fewer of
    them are left than `LARGEST_SHARE` of anomalies would leave. The smallest p-value, times the number of tests.

    Args:
        normal: (n, S) scores of held-out normal images, a column a scale.
        batch: (N, S) scores of the batch.

    Returns:
        None where either is fewer than `MIN_BATCH`.
    """
    known, found = np.asarray(normal, np.float64), np.asarray(batch, np.float64)
    if min(len(known), len(found)) < MIN_BATCH:
        return None
    z = np.array([_bulk_tests(*columns) for columns in zip(known.T, found.T, strict=True)])  # (S, 2)
    p = np.minimum(2 * ndtr(-np.abs(z[:, 0])), ndtr(-z[:, 1]))
    # Not the smallest p: where several scales are certain, theirs are all zero.
    most = int(np.maximum(np.abs(z[:, 0]), z[:, 1]).argmax())
    return Drift(float(min(1.0, p.min() * z.size)), most, bool(-z[most, 0] > z[most, 1]))


def _bulk_tests(normal: Floats, batch: Floats) -> tuple[float, float]:
    """Compare the bulk of one scale, (n,) with (N,): z-scores of its mean rank and of how much of it is missing."""
    n, N = len(normal), len(batch)
    end = np.quantile(normal, BULK)
    known, found = np.sort(normal[normal <= end]), np.sort(batch[batch <= end])
    m, M = len(known), len(found)
    left = BULK * (1 - LARGEST_SHARE)
    missing = (left - M / N) / np.sqrt(left * (1 - left) / N + (1 - LARGEST_SHARE) ** 2 * BULK * (1 - BULK) / n)
    if min(m, M) < MIN_BULK:
        return 0.0, float(missing)
    ranks = (np.searchsorted(known, found, "left") + np.searchsorted(known, found, "right")) / (2 * m)  # ties halved
    moved = ranks.mean() - 0.5
    tolerance = TOLERANCE_UP if moved > 0 else TOLERANCE_DOWN
    return float(moved / np.sqrt((1 / m + 1 / M) / 12 + tolerance**2)), float(missing)
