"""Labelled anomalies: a classifier of descriptors that adds one deviation to the score and enters no memory."""

from __future__ import annotations

from functools import cached_property
from math import sqrt

import torch
from torch import Tensor, nn

from anomaly_cli.detector.whitening import Whitening

LABELLED_NAME = "known"  # of the deviation
WEIGHT_OF_ONE = 1 / 7  # in the image score, relative to the sum of the other weights; grows with √A
MAX_WEIGHT = 0.5
MIN_SEPARATION, FULL_SEPARATION = 0.5, 1.0  # of labels from normal images, where the weight begins and is whole
PARTS = 10  # at most, of the cross-validation
ENOUGH_TO_CHECK = 6  # labelled anomalies whose separation decides alone; that of fewer is uncertain
INVERSE_PENALTY = 1e-2  # C of the logistic regression on whitened descriptors
DESCRIPTOR_FLOOR = 0.3  # of their whitening; 0.1 to 0.6 rank alike, without whitening a third of the gain is lost
SPREAD_PRIOR = 10  # images with the mean variance of all channels, added to the estimate of each channel's
REACH = 20.0  # log odds are clamped to ± this


class LabelledAnomalyClassifier(nn.Module):
    """Binary classifier: labelled anomaly against normal image.

    Its output is the odds > 0 of a logistic regression. An unseen type of anomaly gets about the odds of a normal
    image, so it is not penalised. The names of the buffers are those in model files.
    """

    normal: Tensor
    looks: Tensor
    look_weights: Tensor
    look_offset: Tensor

    def __init__(self, normal: Tensor, anomalous: Tensor, weights: Tensor, offset: Tensor) -> None:
        """Keep the fitted parameters, and the descriptors for the next fit.

        Args:
            normal: (M, D) descriptors of held-out normal images.
            anomalous: (A, D) descriptors of labelled anomalies.
            weights: (D,) of the log odds.
            offset: () of the log odds.
        """
        super().__init__()
        self.register_buffer("normal", normal)
        self.register_buffer("looks", anomalous)
        self.register_buffer("look_weights", weights)
        self.register_buffer("look_offset", offset)

    def forward(self, descriptors: Tensor) -> Tensor:
        """Compute the odds of being anomalous: (N, D) descriptors to (N, 1) > 0."""
        odds: Tensor = (descriptors @ self.look_weights + self.look_offset).clamp(-REACH, REACH).exp()
        return odds[:, None]

    @property
    def weight(self) -> float:
        """Weight in the image score, relative to the sum of the other weights; grows with the number of anomalies."""
        return self.reliability * min(WEIGHT_OF_ONE * sqrt(len(self.looks)), MAX_WEIGHT)

    @cached_property
    def reliability(self) -> float:
        """Share of the weight that the labels get, in [0, 1]: 0 where six or more cannot be told from normal images.

        A fit on other images that were labelled by mistake does not separate such an image from normal ones.
        """
        count = len(self.looks)
        if count == 1:
            return 1.0  # there is nothing to check it by
        missing = 1 - distinct_share(cross_validated_separation(self.normal, self.looks))
        return 1 - missing * min((count - 1) / (ENOUGH_TO_CHECK - 1), 1.0)


def fit_labelled(normal: Tensor, anomalous: Tensor) -> LabelledAnomalyClassifier:
    """Fit the classifier on (M, D) descriptors of normal images, M ≥ 4, and (A, D) of labelled anomalies, A ≥ 1."""
    return LabelledAnomalyClassifier(normal, anomalous, *fit_log_odds(normal, anomalous))


def fit_log_odds(normal: Tensor, anomalous: Tensor) -> tuple[Tensor, Tensor]:
    """Fit a class-balanced logistic regression on descriptors, standardised channel by channel, then whitened.

    With more channels than images whitening overfits its own training images. So it is cross-fitted: each half of the
    normal images gives the whitening in which the other half is separated from the anomalies. The result is the mean
    of both fits.

    Args:
        normal: (M, D), M ≥ 4.
        anomalous: (A, D), A ≥ 1.

    Returns:
        (D,) weights and () offset of the log odds of being anomalous.
    """
    unit = _spread(normal)
    halves = normal[::2] / unit, normal[1::2] / unit
    fits = [_fit_half(*halves, anomalous / unit), _fit_half(*halves[::-1], anomalous / unit)]
    weights, offsets = (torch.stack(each).mean(0) for each in zip(*fits, strict=True))
    return weights / unit, offsets


def cross_validated_separation(normal: Tensor, anomalous: Tensor) -> float:
    """Measure how far labelled anomalies are from normal images, each by a fit without it.

    Args:
        normal: (M, D), M ≥ 8.
        anomalous: (A, D), A ≥ 2.

    Returns:
        Difference of the mean log odds, in standard deviations of those of the normal images.
    """
    parts = min(len(anomalous), PARTS)
    part_of = [torch.arange(len(each), device=each.device) % parts for each in (normal, anomalous)]
    logs = [torch.zeros(len(each), device=each.device) for each in (normal, anomalous)]
    for part in range(parts):
        weights, offset = fit_log_odds(normal[part_of[0] != part], anomalous[part_of[1] != part])
        for values, own, numbers in zip((normal, anomalous), logs, part_of, strict=True):
            own[numbers == part] = (values[numbers == part] @ weights + offset).clamp(-REACH, REACH)
    return float((logs[1].mean() - logs[0].mean()) / logs[0].std().clamp(min=1e-6))


def distinct_share(separation: float) -> float:
    """Turn a cross-validated separation into the share to which labels count: 0 up to ½, 1 from 1 on."""
    return min(max((separation - MIN_SEPARATION) / (FULL_SEPARATION - MIN_SEPARATION), 0.0), 1.0)


def _fit_half(whitened: Tensor, normal: Tensor, anomalous: Tensor) -> tuple[Tensor, Tensor]:
    """Separate `normal` from `anomalous` after the whitening of the (M, D) cells `whitened`."""
    from sklearn.linear_model import LogisticRegression

    whitening = Whitening.fit(whitened, DESCRIPTOR_FLOOR)
    embeddings = whitening(normal)
    centre, spread = embeddings.mean(0), _spread(embeddings)
    standardised = torch.cat([embeddings, whitening(anomalous)]).sub(centre).div(spread).cpu().double().numpy()
    labels = [0] * len(normal) + [1] * len(anomalous)
    fitted = LogisticRegression(C=INVERSE_PENALTY, class_weight="balanced", max_iter=1000).fit(standardised, labels)
    slope = torch.from_numpy(fitted.coef_[0]).to(embeddings) / spread
    weights = whitening.matrix @ slope
    return weights, float(fitted.intercept_[0]) - centre @ slope - whitening.mean @ weights


def _spread(values: Tensor) -> Tensor:
    """Standard deviation of each channel of (M, D) values, shrunk towards that of all channels: (D,) > 0."""
    M, variance = len(values), values.var(0, unbiased=False)
    return ((M * variance + SPREAD_PRIOR * variance.mean()) / (M + SPREAD_PRIOR)).sqrt().clamp(min=1e-6)
