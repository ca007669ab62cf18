"""Stage 1 of the paper beside the product's: contrast with what prototype memories of several scales retrieve.

Equation (reconstructed, docs/method.md):
L = L_product + λ_C · mean_s [ NT-Xent(z_s, z̃_s) + λ_V · mean_j max(0, 1 − std_j) ],
with z̃ = y · HF(z′) + (1 − y) · z′ and HF(q) = softmax(β q Mᵀ) M (Ramsauer et al. 2020, equation 3). y = 1 for normal
images as they are; turned views are further negatives with y = 0 (shifted instances: Tack et al. 2020).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_cli.detector.backbones.backbone import TURNS, Backbone
from anomaly_cli.detector.nearest_prototype import similarities
from anomaly_cli.detector.turn_prediction import StageOne

TEMPERATURE = 0.2  # of NT-Xent (Chen et al. 2020)
BETA = 16.0  # of the retrieval, for embeddings of unit length
PROTOTYPES = 256  # of each scale, learned by gradient
FIRST_CONTRASTED = 1  # of the maps: the finest sees too little of a picture


@dataclass(frozen=True)
class Contrast:
    """Which contrast stands beside the product's loss.

    Attributes:
        weight: λ_C.
        variance_weight: λ_V.
        memory: whether the positive is what the memory retrieves for the other view, or that view itself.
        first: of the maps that are contrasted.
    """

    weight: float = 0.5
    variance_weight: float = 0.5
    memory: bool = True
    first: int = FIRST_CONTRASTED


def hopfield_retrieve(queries: Tensor, prototypes: Tensor, beta: float) -> Tensor:
    """Retrieve softmax(β · similarity) M for (M, D) queries from (K, D) prototypes, β > 0: (M, D), differentiable."""
    return torch.softmax(beta * similarities(queries, prototypes), dim=1) @ prototypes


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


def memory_contrast(z: Tensor, other: Tensor, normal: Tensor, prototypes: Tensor, contrast: Contrast) -> Tensor:
    """Loss of one scale: contrast one view with the retrieval of the other.

    Args:
        z: (B, D) embeddings of one view.
        other: (B, D) embeddings of the other view of the same images.
        normal: (B,) bool; y. Where false the positive is the other view itself, so that it never enters the memory.
        prototypes: (K, D), compared at unit length and updated by the gradient.
        contrast: weights.
    """
    D = z.shape[1]
    query = F.normalize(other, dim=1)
    retrieved = query
    if contrast.memory:
        retrieved = torch.where(normal[:, None], hopfield_retrieve(query, F.normalize(prototypes, dim=1), BETA), query)
    spread = variance_penalty(F.normalize(retrieved, dim=1) * D**0.5)
    return nt_xent(z, retrieved) + contrast.variance_weight * spread


class ContrastedStageOne(StageOne):
    """`StageOne` with a contrast and its memories."""

    def __init__(
        self, contrast: Contrast, backbone: Backbone, gather_rows: Callable[[Tensor], Tensor] = lambda rows: rows
    ) -> None:
        """Start with random prototypes; arguments beside the contrast as of `StageOne`."""
        super().__init__(backbone, gather_rows)
        device = next(backbone.parameters()).device
        side = backbone.strides[-1]
        with torch.inference_mode():
            maps = backbone(torch.zeros(1, 3, side, side, device=device))
        generator = torch.Generator().manual_seed(0)
        self.contrast = contrast
        self.memories = nn.ParameterList(
            torch.randn(PROTOTYPES, each.shape[1], generator=generator) for each in maps[contrast.first :]
        ).to(device)

    def forward(self, views: Tensor, normal: Tensor) -> Tensor:
        """Compute the loss of the whole batch over all scales, arguments as of `StageOne`."""
        pairs = self.mean_cells(views, self.contrast.first)
        unturned = torch.arange(TURNS, device=views.device) == 0
        kinds = (normal[:, None] & unturned).flatten()  # each image, then its turned copies
        contrasts = [
            memory_contrast(*pair, kinds, memory, self.contrast)
            for pair, memory in zip(pairs, self.memories, strict=True)
        ]
        return self.embedding_loss(torch.cat(pairs[-1]), normal) + self.contrast.weight * torch.stack(contrasts).mean()
