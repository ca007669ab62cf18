"""What a batch as a whole says: the share of anomalies in it, and whether its bulk is like the normal images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, ndtri

from anomaly_cli.calibration import MIN_SPREAD
from anomaly_cli.config import MIN_BATCH

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

BULK = 0.7  # share of the normal images that make up the bulk, where there are next to no anomalies
# Of the mean rank of the bulk, upwards and downwards: the memory in use measures a little differently from those that
# measured the held-out images, and knows more images than they did (docs/statistics.md).
TOLERANCE_UP, TOLERANCE_DOWN = 0.04, 0.08
MIN_BULK = 5  # images that a mean rank is taken of
LARGEST_SHARE = 0.5  # of anomalies; where less of the bulk is left than this leaves, the batch itself is another
DRIFT_LEVEL = 0.01  # a batch from the same source is called drifted at most this often

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class AnomalyShare:
    """Estimated share of anomalies in a batch, in [0, 1], with a 95 % interval."""

    share: float
    low: float
    high: float


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
    known, found = np.sort(straight(normal)), straight(batch)
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


def straight(scores: ArrayLike) -> Floats:
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
