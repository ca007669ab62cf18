"""Known anomalies: what labelled anomalous images add to the distance from normal, without entering any memory."""

from __future__ import annotations

from math import sqrt

import torch
from torch import Tensor, nn

from anomaly_cli.detector.whitening import Whitening

LABELLED_NAME = "known"  # of the deviation
WEIGHT_OF_ONE = 1 / 7  # in the image score, where all other voices have 1; grows with the root of the number
MAX_WEIGHT = 0.5
INVERSE_PENALTY = 1e-2  # of the logistic regression on whitened looks
LOOK_FLOOR = 0.3  # of their whitening; 0.1 to 0.6 rank alike, and without whitening a third of the gain is lost
SPREAD_PRIOR = 10  # images that vary as all channels do, beside those that tell the spread of one channel
REACH = 20.0  # logarithms of the odds stay within ± this


class LabelledAnomalyClassifier(nn.Module):
    """One question to an image: does it look more like a known anomaly than like a normal image?

    The answer is a ratio > 0, the odds of a logistic regression. An unknown kind of anomaly gets about the odds of a
    normal image, so what is not known is not ranked lower.
    """

    normal: Tensor
    looks: Tensor
    look_weights: Tensor
    look_offset: Tensor

    def __init__(self, normal: Tensor, looks: Tensor, look_weights: Tensor, look_offset: Tensor) -> None:
        """Keep what was fitted.

        Args:
            normal: (M, D) looks of held-out normal images, for the next fit.
            looks: (A, D) looks of the known anomalies, likewise.
            look_weights: (D,).
            look_offset: ().
        """
        super().__init__()
        self.register_buffer("normal", normal)
        self.register_buffer("looks", looks)
        self.register_buffer("look_weights", look_weights)
        self.register_buffer("look_offset", look_offset)

    def forward(self, looks: Tensor) -> Tensor:
        """Compare (N, D) looks of images with the known anomalies: (N, 1) > 0."""
        odds: Tensor = (looks @ self.look_weights + self.look_offset).clamp(-REACH, REACH).exp()
        return odds[:, None]

    @property
    def weight(self) -> float:
        """Weight in the image score, where all other voices have 1: the more there are, the surer they are."""
        return min(WEIGHT_OF_ONE * sqrt(len(self.looks)), MAX_WEIGHT)


def fit_labelled(normal: Tensor, looks: Tensor) -> LabelledAnomalyClassifier:
    """Fit the comparison of (M, D) looks of normal images, M ≥ 4, with (A, D) of known anomalies, A ≥ 1."""
    return LabelledAnomalyClassifier(normal, looks, *fit_look(normal, looks))


def fit_look(normal: Tensor, anomalous: Tensor) -> tuple[Tensor, Tensor]:
    """Fit a class-balanced logistic regression between looks, standardised channel by channel and then whitened.

    There are often more channels than images, and a whitening brings the images that it was fitted on far closer
    together than new ones. So one half of the normal images gives the whitening in which the other half is told from
    the anomalies, and the other way round; the answer is the mean of both.

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


def _fit_half(whitened: Tensor, normal: Tensor, anomalous: Tensor) -> tuple[Tensor, Tensor]:
    """Tell `normal` from `anomalous` in the space that `whitened` gives."""
    from sklearn.linear_model import LogisticRegression

    whitening = Whitening.fit(whitened, LOOK_FLOOR)
    embeddings = whitening(normal)
    centre, spread = embeddings.mean(0), _spread(embeddings)
    looks = torch.cat([embeddings, whitening(anomalous)]).sub(centre).div(spread).cpu().double().numpy()
    labels = [0] * len(normal) + [1] * len(anomalous)
    fitted = LogisticRegression(C=INVERSE_PENALTY, class_weight="balanced", max_iter=1000).fit(looks, labels)
    slope = torch.from_numpy(fitted.coef_[0]).to(embeddings) / spread
    weights = whitening.matrix @ slope
    return weights, float(fitted.intercept_[0]) - centre @ slope - whitening.mean @ weights


def _spread(looks: Tensor) -> Tensor:
    """Standard deviation of each channel of (M, D) looks, drawn towards that of all channels: (D,) > 0."""
    M, variance = len(looks), looks.var(0, unbiased=False)
    return ((M * variance + SPREAD_PRIOR * variance.mean()) / (M + SPREAD_PRIOR)).sqrt().clamp(min=1e-6)
