"""Stage 2: the anomaly-distance head, which weighs channels and scales of the deviations, monotone and never negative.

It starts at the plain distance and keeps what cross-validation shows to be better than that; otherwise it stays there.
Loss: the hypersphere classifier of Ruff et al. 2021 (normal → 0, anomaly → large).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold
from torch import Tensor

MIN_ANOMALIES = 4  # fewer cannot be cross-validated
FOLDS = 4
STEPS = 150
LEARNING_RATE = 0.05
PENALTIES = (10.0, 1.0, 0.1)  # on the distance from the plain distance; the smaller, the freer
STANDARD_ERRORS = 2.0  # that the cross-validated gain must exceed, so that chance does not switch the head on


class HeadWeights(NamedTuple):
    """What stage 2 learned.

    Attributes:
        channels: one (D_s,) > 0 a scale; all ones is the plain distance.
        scales: (S,) > 0 weight of each scale; all ones is the plain distance.
        gain: relative reduction of the cross-validated loss against the plain distance, 0 if it was kept.
    """

    channels: list[Tensor]
    scales: Tensor
    gain: float


class HeadData(NamedTuple):
    """Deviations of the hottest cells of normal (held out) and anomalous images.

    Attributes:
        channels: one (N, D_s) mean squared deviation a channel, a scale.
        shares: (S,) of each scale in the image score with the plain distance.
        anomalous: (N,) bool.
    """

    channels: list[Tensor]
    shares: Tensor
    anomalous: Tensor

    def subset(self, indices: Tensor) -> HeadData:
        """Choose images."""
        return HeadData([c[indices] for c in self.channels], self.shares, self.anomalous[indices])


def learn_head(data: HeadData, seed: int) -> HeadWeights:
    """Learn the weights, or keep the plain distance where cross-validation finds nothing better.

    Args:
        data: of at least one normal image; anomalies may be synthetic or labelled.
        seed: of the folds.
    """
    plain = HeadWeights(*_start(data), 0.0)
    if int(data.anomalous.sum()) < MIN_ANOMALIES or int((~data.anomalous).sum()) < MIN_ANOMALIES:
        return plain
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    splits = [
        (torch.from_numpy(train), torch.from_numpy(test)) for train, test in folds.split(data.anomalous, data.anomalous)
    ]
    baseline = _cross_validate(data, splits, None)
    trials = {penalty: _cross_validate(data, splits, penalty) for penalty in PENALTIES}
    best = min(trials, key=lambda penalty: float(trials[penalty].losses.mean()))
    saved = baseline.losses - trials[best].losses  # image by image
    chance = saved.std() / len(saved) ** 0.5
    if saved.mean() < STANDARD_ERRORS * chance or trials[best].auroc < baseline.auroc:
        return plain
    channels, scales = _fit(data, best)
    return HeadWeights(channels, scales, float(saved.mean() / baseline.losses.mean()))


class _Trial(NamedTuple):
    losses: Tensor  # (N,), of each image by weights that were learned without it
    auroc: float


def _cross_validate(data: HeadData, splits: list[tuple[Tensor, Tensor]], penalty: float | None) -> _Trial:
    losses = torch.zeros(len(data.anomalous))
    aurocs = []
    for train, test in splits:
        seen, unseen = data.subset(train), data.subset(test)
        weights = _start(data) if penalty is None else _fit(seen, penalty)
        with torch.no_grad():
            score = _scores(unseen, *weights, reference=seen)
            losses[test] = _hypersphere_losses(score, unseen.anomalous)
        aurocs.append(float(roc_auc_score(unseen.anomalous.numpy(), score.numpy())))
    return _Trial(losses, float(np.mean(aurocs)))


def _start(data: HeadData) -> tuple[list[Tensor], Tensor]:
    return [torch.ones(c.shape[1]) for c in data.channels], torch.ones(len(data.channels))


def _fit(data: HeadData, penalty: float) -> tuple[list[Tensor], Tensor]:
    """Minimise loss + penalty · squared log weights: log weights of zero are the plain distance."""
    logs = [torch.zeros(c.shape[1], requires_grad=True) for c in data.channels]
    scales = torch.zeros(len(data.channels), requires_grad=True)
    optimiser = torch.optim.Adam([*logs, scales], LEARNING_RATE)
    with torch.enable_grad():
        for _ in range(STEPS):
            score = _scores(data, [log.exp() for log in logs], scales.exp(), reference=data)
            size = sum((log.square().mean() for log in logs), scales.square().mean())
            loss = _hypersphere_losses(score, data.anomalous).mean() + penalty * size
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
    return [log.detach().exp() for log in logs], scales.detach().exp()


def _scores(data: HeadData, channels: list[Tensor], scales: Tensor, reference: HeadData) -> Tensor:
    """Weighted mean of standardised log deviations, zero at the mean of the reference's normal images: (N,)."""
    standard = []
    for own, other, weights in zip(data.channels, reference.channels, channels, strict=True):
        normal = 0.5 * (other[~reference.anomalous] @ weights).log()
        standard.append((0.5 * (own @ weights).log() - normal.mean()) / normal.std().clamp(min=1e-6))
    share = scales * data.shares
    return torch.stack(standard, dim=1) @ (share / share.sum())


def _hypersphere_losses(score: Tensor, anomalous: Tensor) -> Tensor:
    """Hypersphere classifier loss with the pseudo-Huber radius of each image, both classes weighing alike: (N,).

    h = √(a² + 1) − 1 with a = softplus(score); normal: h, anomalous: −log(1 − exp(−h)) (Ruff et al. 2021, section 3).
    """
    radius = (torch.nn.functional.softplus(score).square() + 1).sqrt() - 1
    far = -torch.log(-torch.expm1(-radius.clamp(min=1e-6)))
    share = anomalous.float().mean().clamp(1e-6, 1 - 1e-6)
    return torch.where(anomalous, 0.5 * far / share, 0.5 * radius / (1 - share))
