"""Turn raw deviations into scores in units of the limit of normal, and scores into p- and q-values (NumPy only)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import logsumexp, ndtr, stdtrit

from anomaly_cli.statistics.conformal import conformal_p_values
from anomaly_cli.statistics.prediction_limit import MIN_SPREAD, normal_limit

Floats = NDArray[np.float64]

SOFTNESS = 3.0  # τ of the smooth maximum: near the mean for usual deviations, near the largest for extreme ones
OUTLIER_LIMIT = 3.0  # robust standard deviations above the median (Leys et al. 2013: a conservative choice)
MAD_EFFICIENCY = 0.37  # of the median absolute deviation: its degrees of freedom a value
MAD_TO_STD = 1.4826  # of a normal distribution


@dataclass(frozen=True)
class ScoreScale:
    """A scale on which 0.5 is the median of normal and 1.0 its limit; linear above the median, positive below."""

    median: float
    limit: float

    @classmethod
    def fit(cls, values: ArrayLike) -> ScoreScale:
        """Place the unit on (n,) values of held-out normal images."""
        median = float(np.median(np.asarray(values, np.float64)))
        return cls(median, max(normal_limit(values), median + MIN_SPREAD))

    def apply(self, values: ArrayLike) -> Floats:
        """Convert raw values of any shape: ≥ 0, increasing, unbounded above, smooth at the median."""
        t = (np.asarray(values, np.float64) - self.median) / (self.limit - self.median)
        return np.where(t >= 0, 0.5 + 0.5 * t, 0.5 * np.exp(np.minimum(t, 0)))


@dataclass(frozen=True)
class Calibration:
    """Distribution of held-out normal images: log deviations of each component, and image scores.

    Attributes:
        location: (E,) mean log deviation of each component.
        spread: (E,) its standard deviation.
        weights: (E,) ≥ 0, weight of each score component, sum 1.
        scale_units: unit of each component's standardised deviation.
        score_unit: unit of the value of `fuse_scores`.
        normal_deviations: (n, E) raw deviations of the held-out normal images, in ascending order of their scores.
    """

    location: Floats
    spread: Floats
    weights: Floats
    scale_units: tuple[ScoreScale, ...]
    score_unit: ScoreScale
    normal_deviations: Floats

    @classmethod
    def fit(cls, deviations: Floats, weights: Floats) -> Calibration:
        """Fit on (n, E) deviations > 0 of held-out normal images."""
        logs = np.log(deviations)
        location = logs.mean(axis=0)
        spread = np.maximum(logs.std(axis=0, ddof=1), MIN_SPREAD)
        standard = (logs - location) / spread
        units = tuple(ScoreScale.fit(column) for column in standard.T)
        weights = weights / weights.sum()
        values = fuse_scores(standard, weights)
        order = np.argsort(values, kind="stable")
        return cls(location, spread, weights, units, ScoreScale.fit(values), deviations[order])

    @cached_property
    def normal_scores(self) -> Floats:
        """(n,) ascending scores of the held-out normal images."""
        return np.sort(self.scores(self.normal_deviations)[0])

    @property
    def is_degenerate(self) -> bool:
        """Whether a component of the score is the same for all held-out normal images: then it has no unit."""
        return bool((self.spread[self.weights > 0] <= MIN_SPREAD).any())

    def scores(self, deviations: Floats) -> tuple[Floats, Floats]:
        """Score images.

        Args:
            deviations: (N, E), > 0.

        Returns:
            (N,) image scores and (N, E) scores of each component alone, all in units of the limit of normal.
        """
        standard = (np.log(deviations) - self.location) / self.spread
        each = np.stack([unit.apply(column) for unit, column in zip(self.scale_units, standard.T, strict=True)], 1)
        return self.score_unit.apply(fuse_scores(standard, self.weights)), each

    def largest_component(self, deviations: Floats) -> int:
        """Find the index of the component that contributes most to the score of one image of (E,) deviations."""
        standard = (np.log(deviations) - self.location) / self.spread
        with np.errstate(divide="ignore"):  # a weight of zero contributes nothing
            return int(np.argmax(np.log(self.weights) + standard / SOFTNESS))

    def robust_z(self, deviations: Floats) -> Floats:
        """Compute (N,) robust z-scores of (N, E) deviations among the held-out normal images.

        From median and median absolute deviation, which anomalies among the normal images hardly move.
        """
        normal, values = (
            fuse_scores((np.log(each) - self.location) / self.spread, self.weights)
            for each in (self.normal_deviations, deviations)
        )
        centre = np.median(normal)
        spread = MAD_TO_STD * np.median(np.abs(normal - centre))
        z: Floats = (values - centre) / max(spread, MIN_SPREAD)
        return z

    def outliers(self, deviations: Floats) -> NDArray[np.bool_]:
        """Find which of (N, E) deviations are outliers, whose images may not be normal: (N,) bool.

        The limit is `OUTLIER_LIMIT` for many normal images, and Student's t prediction limit of the same probability
        for few, whose spread is uncertain.
        """
        n = len(self.normal_deviations)
        freedom = max(1.0, MAD_EFFICIENCY * (n - 1))
        limit = stdtrit(freedom, ndtr(OUTLIER_LIMIT)) * np.sqrt(1 + 1 / n)
        outlying: NDArray[np.bool_] = self.robust_z(deviations) > limit
        return outlying

    def p_values(self, scores: ArrayLike) -> Floats:
        """Conformal p-values of (N,) scores against the held-out normal images."""
        return conformal_p_values(self.normal_scores, scores)


def fuse_scores(standard: Floats, weights: Floats) -> Floats:
    """Fuse (N, E) standardised deviations of an image to their smooth maximum τ log Σ w exp(z / τ): (N,).

    A single strong component dominates and moderate ones accumulate, where a mean would dilute the strong one
    (docs/method.md).
    """
    active = weights > 0
    values: Floats = SOFTNESS * logsumexp(standard[:, active] / SOFTNESS, axis=1, b=weights[active])
    return values
