"""Prevalence: estimate the share of anomalies in a batch with a two-component mixture."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, ndtri

from anomaly_cli.config import MIN_BATCH
from anomaly_cli.statistics.interval import Interval
from anomaly_cli.statistics.prediction_limit import MIN_SPREAD

CREDIBLE = 0.95  # probability of the credible interval
TAILS = (0.75, 0.5, 0.35, 0.2, 0.1, 0.05, 0.02)  # upper-tail probabilities of normal images at the bin edges
FAR_EDGES = (3.0, 4.0, 5.5, 8.0, 12.0)  # further bin edges, in robust z of the normal images
# Means and standard deviations of the anomalous component, in the same unit. Below 1.5 the components cannot be
# separated, and every interval would only widen (docs/statistics.md).
CENTRES = (1.5, 2.0, 2.75, 3.5, 5.0, 7.0, 10.0, 20.0)
WIDTHS = (0.7, 1.2, 2.0, 3.0)
FEW_FIRST = 2.5  # prior: share = u ** 2.5 with u uniform, density ∝ share ** −0.6
SHARE_STEPS = 241
SHIFT_SPREAD = (
    0.1  # prior standard deviation of the shift of new normal images against held-out ones, which another memory scored
)
SHIFT_STEPS = np.linspace(-2, 2, 7)  # in units of SHIFT_SPREAD

Floats = NDArray[np.float64]


def anomaly_share(normal: ArrayLike, batch: ArrayLike) -> Interval | None:
    """Estimate the share of anomalies in a batch, including those too close to normal to be flagged.

    Two-component mixture (McLachlan & Peel 2000; Efron 2004): normal scores as the held-out ones are distributed, and
    anomalous scores from a normal distribution of unknown mean and standard deviation. The posterior of the share is
    marginalised over both. Storey's estimator, from p-values alone, misses anomalies that overlap with normal images.

    Args:
        normal: (n,) scores of held-out normal images.
        batch: (N,) scores of the batch.

    Returns:
        Posterior mean and credible interval; None if either has fewer than `MIN_BATCH` images.
    """
    known, found = np.sort(invert_unit(normal)), invert_unit(batch)
    n, N = len(known), len(found)
    if min(n, N) < MIN_BATCH:
        return None
    low, median, high = np.quantile(known, (0.16, 0.5, 0.84))
    spread = max((high - low) / 2, MIN_SPREAD)
    edges, normal_mass = _normal_bins((known - median) / spread)
    counts = np.histogram((found - median) / spread, edges)[0]
    shares = np.linspace(0, 1, SHARE_STEPS) ** FEW_FIRST
    # The normal images are a sample too: the effective sample size is n N / (n + N).
    evidence = n / (n + N) * _log_likelihood(counts, shares, normal_mass, _anomalous_bins(edges))
    evidence -= 0.5 * SHIFT_STEPS[:, None] ** 2  # standard normal prior of the shift
    posterior = np.exp(evidence - evidence.max()).sum(axis=(1, 2))
    posterior /= posterior.sum()
    tail = (1 - CREDIBLE) / 2
    first, last = np.searchsorted(posterior.cumsum(), (tail, 1 - tail)).clip(max=SHARE_STEPS - 1)
    lowest = float(shares[first]) if shares[first] * N >= 0.5 else 0.0  # less than half an image counts as none
    return Interval(float(shares @ posterior), lowest, float(shares[last]))


def invert_unit(scores: ArrayLike) -> Floats:
    """Inverse of `ScoreScale.apply` up to scale: 0 at the median of normal images, 1 at their limit."""
    s = np.maximum(np.asarray(scores, np.float64), np.finfo(np.float64).tiny)
    return np.where(s >= 0.5, 2 * s - 1, np.log(2 * s))


def _normal_bins(normal: Floats) -> tuple[Floats, Floats]:
    """Bin the scores at order statistics of the (n,) ascending normal scores, and beyond them at `FAR_EDGES`.

    A new normal image exceeds the k-th highest with probability k / (n + 1).

    Returns:
        (B + 1,) edges, and the probability of each bin for a normal image: (D, B), one row per shift.
    """
    n = len(normal)
    ranks = np.unique(np.round(np.multiply(TAILS, n + 1)).clip(min=1).astype(int))[::-1]
    near = normal[n - ranks]
    far = np.array([edge for edge in FAR_EDGES if edge > near[-1]])
    beyond = [
        ((normal > edge).sum() + 0.5) / ranks[-1] for edge in far
    ]  # relative to the images above the last of `near`
    above = ndtr(ndtri(ranks / (n + 1)) + SHIFT_SPREAD * SHIFT_STEPS[:, None])  # (D, ranks)
    ends = np.ones((len(above), 1))
    tails = np.concatenate([ends, above, above[:, -1:] * np.minimum(beyond, 1), 0 * ends], axis=1)  # (D, B + 1)
    edges = np.concatenate([[-np.inf], np.nextafter(near, np.inf), far, [np.inf]])
    return edges, -np.diff(tails, axis=1)


def _anomalous_bins(edges: Floats) -> Floats:
    """Probability of each bin between (B + 1,) edges for an anomaly: (A, B), one row per pair of mean and deviation."""
    centres, widths = np.meshgrid(CENTRES, WIDTHS)
    z = (edges - centres.reshape(-1, 1)) / widths.reshape(-1, 1)  # (A, B + 1)
    mass: Floats = np.diff(ndtr(z), axis=1)
    return mass


def _log_likelihood(counts: NDArray[np.int64], shares: Floats, normal: Floats, anomalous: Floats) -> Floats:
    """Log likelihood of (B,) counts for every share, shift and anomalous component: (shares, D, A)."""
    mixed = (1 - shares)[:, None, None, None] * normal[:, None] + shares[:, None, None, None] * anomalous
    found: Floats = np.log(np.maximum(mixed, np.finfo(np.float64).tiny)) @ counts.astype(np.float64)
    return found
