"""Stage 1: memory-augmented contrastive learning of embeddings and prototypes, all scales at once, and of turns.

Equation (reconstructed, docs/method.md):
L = L_turn + λ_C · mean_s [ NT-Xent(z_s, z̃_s) + λ_V · mean_j max(0, 1 − std_j) ],
with z̃ = y · HF(z′) + (1 − y) · z′, y = 1 for a normal image and 0 for a labelled anomaly.

Within one class the contrast alone learns little about form. So every view is also turned by 90°, 180° and 270°: turned
views are negatives with y = 0 (shifted instances: Tack et al. 2020; Sohn et al. 2021, *Learning and Evaluating
Representations for Deep One-class Classification*), and L_turn is the cross entropy of a head that says by how many
quarters a normal view was turned (Gidaris et al. 2018; Golan & El-Yaniv 2018), which makes short schedules work.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_cli.detector.backbones.backbone import TURNS, Backbone
from anomaly_cli.detector.devices import prefers_bfloat16
from anomaly_cli.detector.memory import hopfield_retrieve

TEMPERATURE = 0.2  # of NT-Xent (Chen et al. 2020)
BETA = 16.0  # of the retrieval, for embeddings of unit length
VARIANCE_WEIGHT = 0.5  # λ_V
CONTRAST_WEIGHT = 0.5  # λ_C
FIRST_CONTRASTED = 1  # of the maps: the finest sees too little of a picture


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
    """Backbone and prototypes of every contrasted scale: the parameters of stage 1, on one process or several."""

    def __init__(
        self,
        backbone: Backbone,
        schedule: Schedule,
        seed: int,
        gather_rows: Callable[[Tensor], Tensor] = lambda rows: rows,
    ) -> None:
        """Start with random prototypes.

        Args:
            backbone: with its starting weights and a turn head; trained in place.
            schedule: size of views and memories.
            seed: of the prototypes.
            gather_rows: joins the rows of all processes, where each has its share of a batch.
        """
        super().__init__()
        device = next(backbone.parameters()).device
        with torch.inference_mode():
            maps = backbone(torch.zeros(1, 3, schedule.crop, schedule.crop, device=device))
        generator = torch.Generator().manual_seed(seed)
        self.backbone = backbone
        self.memories = nn.ParameterList(
            torch.randn(schedule.prototypes, each.shape[1], generator=generator) for each in maps[FIRST_CONTRASTED:]
        ).to(device)
        self._gather_rows = gather_rows

    def forward(self, views: Tensor, normal: Tensor) -> Tensor:
        """Compute the loss of the whole batch, over all scales: the same in every process.

        The embedding of a scale is the mean of its cells, since two views show different parts of an image.

        Args:
            views: (2n, 3, H, H) in [0, 1], this process's share of the batch: a view of each image, then another.
            normal: (N,) bool, of the images of the whole batch.
        """
        turned = torch.stack([torch.rot90(views, turns, (2, 3)) for turns in range(TURNS)], dim=1).flatten(0, 1)
        fast = turned.device.type == "cpu" and turned.dtype == torch.float32 and prefers_bfloat16()
        with torch.autocast("cpu", torch.bfloat16, enabled=fast):
            maps = self.backbone(turned)[FIRST_CONTRASTED:]
        pairs = [self._gather_pairs(each.to(views.dtype).mean(dim=(2, 3))) for each in maps]
        unturned = torch.arange(TURNS, device=views.device) == 0
        kinds = (normal[:, None] & unturned).flatten()  # each image, then its turned copies
        contrasts = [memory_contrast(*pair, kinds, M) for pair, M in zip(pairs, self.memories, strict=True)]
        return self._turn_loss(torch.cat(pairs[-1]), normal) + CONTRAST_WEIGHT * torch.stack(contrasts).mean()

    def _gather_pairs(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Join the (8n, D) embeddings of all processes: (4N, D) of first views, and of the others."""
        first, second = (self._gather_rows(half) for half in rows.chunk(2))
        return first, second

    def _turn_loss(self, embeddings: Tensor, normal: Tensor) -> Tensor:
        """Cross entropy of the turn of (8N, D) views; anomalies take no part, as their turns shall stay unsure."""
        logits = self.backbone.turn_logits(embeddings)
        turns = torch.arange(TURNS, device=logits.device).repeat(len(logits) // TURNS)
        kept = normal.repeat_interleave(TURNS).repeat(2)
        losses = F.cross_entropy(logits, turns, reduction="none")
        return (losses * kept).sum() / kept.sum().clamp(min=1)
