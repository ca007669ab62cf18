"""What a batch as a whole says: the share of anomalies in it, and whether its bulk is like the normal images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, ndtri

from anomaly_cli.config import MIN_BATCH
from anomaly_cli.statistics.prediction_limit import MIN_SPREAD

CREDIBLE = 0.95  # probability of the interval of the share
TAILS = (0.75, 0.5, 0.35, 0.2, 0.1, 0.05, 0.02)  # shares of the normal images above the edges of the bins
FAR_EDGES = (3.0, 4.0, 5.5, 8.0, 12.0)  # further edges, in spreads of the normal images from their median
# What anomalies may look like, in the same unit. Nearer than 1.5 they cannot be told from normal images, and taking
# them into account only widens every interval (docs/statistics.md).
CENTRES = (1.5, 2.0, 2.75, 3.5, 5.0, 7.0, 10.0, 20.0)
WIDTHS = (0.7, 1.2, 2.0, 3.0)
FEW_FIRST = 2.5  # the share is drawn as u ** 2.5, u uniform: few anomalies are likelier than many
SHARE_STEPS = 241
SHIFT_SPREAD = 0.1  # by which the normal images of a batch lie off the held-out ones: another memory measures them
SHIFT_STEPS = np.linspace(-2, 2, 7)  # of that size that are summed over


Floats = NDArray[np.float64]


@dataclass(frozen=True)
class AnomalyShare:
    """Estimated share of anomalies in a batch, in [0, 1], with a 95 % interval."""

    share: float
    low: float
    high: float


def anomaly_share(normal: ArrayLike, batch: ArrayLike) -> AnomalyShare | None:
    """Estimate how many images of a batch are anomalous, also those that are not extreme enough to be flagged.

    Two groups (McLachlan & Peel 2000; Efron 2004): the scores of normal images, known from held-out ones, and a bell
    curve of unknown centre and width above them. The posterior of the share is summed over what anomalies may look
    like. Counting p-values alone (Storey) misses the anomalies among them that look normal.

    Args:
        normal: (n,) scores of held-out normal images.
        batch: (N,) scores of the batch.

    Returns:
        None where either is fewer than `MIN_BATCH`.
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
    # The normal images are a sample too: both together know as much as n N / (n + N) images would alone.
    evidence = n / (n + N) * _log_likelihood(counts, shares, normal_mass, _anomalous_bins(edges))
    evidence -= 0.5 * SHIFT_STEPS[:, None] ** 2  # shifts are normally distributed themselves
    posterior = np.exp(evidence - evidence.max()).sum(axis=(1, 2))
    posterior /= posterior.sum()
    tail = (1 - CREDIBLE) / 2
    first, last = np.searchsorted(posterior.cumsum(), (tail, 1 - tail)).clip(max=SHARE_STEPS - 1)
    lowest = float(shares[first]) if shares[first] * N >= 0.5 else 0.0  # less than half an image is none
    return AnomalyShare(float(shares @ posterior), lowest, float(shares[last]))


def invert_unit(scores: ArrayLike) -> Floats:
    """Undo the bend that keeps scores below one half positive: 0 at the median of normal, 1 at its limit."""
    s = np.maximum(np.asarray(scores, np.float64), np.finfo(np.float64).tiny)
    return np.where(s >= 0.5, 2 * s - 1, np.log(2 * s))


def _normal_bins(normal: Floats) -> tuple[Floats, Floats]:
    """Cut the line at order statistics of the (n,) ascending scores of normal images, and further on at `FAR_EDGES`.

    A fresh normal image lies above the k-th highest with probability k / (n + 1).

    Returns:
        (B + 1,) edges, and the probability of each bin for a normal image: (D, B), a row a shift.
    """
    n = len(normal)
    ranks = np.unique(np.round(np.multiply(TAILS, n + 1)).clip(min=1).astype(int))[::-1]
    near = normal[n - ranks]
    far = np.array([edge for edge in FAR_EDGES if edge > near[-1]])
    beyond = [((normal > edge).sum() + 0.5) / ranks[-1] for edge in far]  # of the images above the last of `near`
    above = ndtr(ndtri(ranks / (n + 1)) + SHIFT_SPREAD * SHIFT_STEPS[:, None])  # (D, ranks)
    ends = np.ones((len(above), 1))
    tails = np.concatenate([ends, above, above[:, -1:] * np.minimum(beyond, 1), 0 * ends], axis=1)  # (D, B + 1)
    edges = np.concatenate([[-np.inf], np.nextafter(near, np.inf), far, [np.inf]])
    return edges, -np.diff(tails, axis=1)


def _anomalous_bins(edges: Floats) -> Floats:
    """Probability of each bin between (B + 1,) edges for an anomaly: (A, B), a row a centre and width."""
    centres, widths = np.meshgrid(CENTRES, WIDTHS)
    z = (edges - centres.reshape(-1, 1)) / widths.reshape(-1, 1)  # (A, B + 1)
    mass: Floats = np.diff(ndtr(z), axis=1)
    return mass


def _log_likelihood(counts: NDArray[np.int64], shares: Floats, normal: Floats, anomalous: Floats) -> Floats:
    """Log likelihood of (B,) counts for every share, shift and kind of anomaly: (shares, D, A)."""
    mixed = (1 - shares)[:, None, None, None] * normal[:, None] + shares[:, None, None, None] * anomalous
    found: Floats = np.log(np.maximum(mixed, np.finfo(np.float64).tiny)) @ counts.astype(np.float64)
    return found
