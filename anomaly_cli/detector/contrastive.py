"""Stage 1: memory-augmented contrastive learning of embeddings and prototypes, all scales at once.

Equation (reconstructed, docs/method.md): L = Σ_s λ_s [ NT-Xent(z_s, z̃_s) + λ_V · mean_j max(0, 1 − std_j) ] with
z̃ = y · HF(z′) + (1 − y) · z′, y = 1 for a normal image and 0 for a labelled anomaly.

Within one class the contrast alone learns little about form. So rotated views (90°, 180° or 270°) serve as negatives
with y = 0 (shifted instances: Tack et al. 2020; Sohn et al. 2021, *Learning and Evaluating Representations for Deep
One-class Classification*).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_cli.detector.backbones.backbone import Backbone
from anomaly_cli.detector.features import scale_features
from anomaly_cli.detector.memory import hopfield_retrieve

TEMPERATURE = 0.2  # of NT-Xent (Chen et al. 2020)
BETA = 16.0  # of the retrieval, for embeddings of unit length
VARIANCE_WEIGHT = 0.5  # λ_V


@dataclass(frozen=True)
class Schedule:
    """How long stage 1 runs."""

    steps: int
    crop: int  # pixels, side of the square views; a multiple of 32
    prototypes: int = 256  # of each scale, learned by gradient


def nt_xent(z: Tensor, positive: Tensor) -> Tensor:
    """Normalised temperature-scaled cross entropy (Chen et al. 2020, equation 1), one direction.

    Args:
        z: (B, D) embeddings.
        positive: (B, D) positive of each row; the other rows are its negatives.

    Returns:
        Scalar mean over the batch.
    """
    similarity = F.normalize(z, dim=1) @ F.normalize(positive, dim=1).T / TEMPERATURE  # (B, B)
    return F.cross_entropy(similarity, torch.arange(len(z), device=z.device))


def variance_penalty(z: Tensor) -> Tensor:
    """Penalise channels that collapse: mean over D of max(0, 1 − std), for (B, D) embeddings of unit spread."""
    return F.relu(1 - z.std(dim=0)).mean()


def memory_contrast(z: Tensor, other: Tensor, normal: Tensor, prototypes: Tensor) -> Tensor:
    """Loss of one scale: contrast one view with the retrieval of the other.

    Args:
        z: (B, D) embeddings of one view.
        other: (B, D) embeddings of the other view of the same images.
        normal: (B,) bool; y. Where false the positive is the other view itself, so that it never enters the memory.
        prototypes: (K, D), compared at unit length and updated by the gradient.
    """
    D = z.shape[1]
    query = F.normalize(other, dim=1)
    retrieved = torch.where(normal[:, None], hopfield_retrieve(query, F.normalize(prototypes, dim=1), BETA), query)
    spread = variance_penalty(F.normalize(retrieved, dim=1) * D**0.5)
    return nt_xent(z, retrieved) + VARIANCE_WEIGHT * spread


class StageOne(nn.Module):
    """Backbone and prototypes of every scale: the parameters of stage 1, on one process or several."""

    def __init__(
        self,
        backbone: Backbone,
        names: tuple[str, ...],
        schedule: Schedule,
        seed: int,
        gather_rows: Callable[[Tensor], Tensor] = lambda rows: rows,
    ) -> None:
        """Start with random prototypes.

        Args:
            backbone: with its starting weights; trained in place.
            names: of the scales in the loss, each with λ_s = 1.
            schedule: size of views and memories.
            seed: of the prototypes.
            gather_rows: joins the rows of all processes, where each has its share of a batch.
        """
        super().__init__()
        device = next(backbone.parameters()).device
        with torch.inference_mode():
            shapes = scale_features(backbone, torch.zeros(1, 3, schedule.crop, schedule.crop, device=device), names)
        generator = torch.Generator().manual_seed(seed)
        self.backbone = backbone
        self.names = names
        self.memories = nn.ParameterList(
            torch.randn(schedule.prototypes, shapes[name].shape[1], generator=generator) for name in names
        ).to(device)
        self._gather_rows = gather_rows

    def forward(self, views: Tensor, normal: Tensor) -> Tensor:
        """Compute the loss of the whole batch, summed over all scales: the same in every process.

        The embedding of a local scale is the mean of its cells, since two views show different parts of an image.

        Args:
            views: (4n, 3, H, W) in [0, 1], this process's share of the batch, as `draw_batch` orders it.
            normal: (N,) bool, of the images of the whole batch.
        """
        features = scale_features(self.backbone, views, self.names)
        kinds = torch.stack([normal, torch.zeros_like(normal)], dim=1).flatten()  # each image, then its rotation
        losses = []
        for name, prototypes in zip(self.names, self.memories, strict=True):
            embeddings = features[name].mean(dim=(2, 3))
            z, other = (self._gather_rows(rows) for rows in embeddings.chunk(2))
            losses.append(memory_contrast(z, other, kinds, prototypes))
        return torch.stack(losses).sum()
