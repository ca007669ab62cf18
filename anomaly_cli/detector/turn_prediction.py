"""Stage 1: a network from random weights learns the form of normal images by telling how a picture was turned.

L = L_turn + λ_E · L_exposed + λ_L · L_labelled. Every view of an image is turned by 0°, 90°, 180° and 270°. L_turn is
the cross entropy of a head that says by how many quarters a normal view was turned (Gidaris et al. 2018; Golan &
El-Yaniv 2018). L_exposed is that of labelled anomalies with the uniform distribution (outlier exposure: Hendrycks et
al. 2019, *Deep Anomaly Detection with Outlier Exposure*, section 4.3), so that the head is unsure of what looks like
them. L_labelled is the cross entropy, balanced between both, of a second head that tells labelled anomalies from normal
images by the direction of the embedding, so that they differ in it. This head is not kept.

The contrast with memories of the paper is a variant of `benchmarks.accuracy.ablation`: it cost more than it brought
(docs/method.md).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_cli.detector.backbones.backbone import TURNS, Backbone
from anomaly_cli.detector.devices import prefers_bfloat16

EXPOSURE_WEIGHT = 0.5  # λ_E (Hendrycks et al. 2019)
LABELLED_WEIGHT = 0.5  # λ_L
LENGTH = 8.0  # of what the second head takes: with a length of one it would have to learn large weights first


@dataclass(frozen=True)
class Schedule:
    """How long stage 1 runs."""

    steps: int
    crop: int  # pixels, side of the square views; a multiple of 32


class StageOne(nn.Module):
    """The loss of stage 1 and what it trains, on one process or several."""

    def __init__(self, backbone: Backbone, gather_rows: Callable[[Tensor], Tensor] = lambda rows: rows) -> None:
        """Wrap a backbone.

        Args:
            backbone: with its starting weights and a turn head; trained in place.
            gather_rows: joins the rows of all processes, where each has its share of a batch.

        Raises:
            ValueError: the backbone has no turn head.
        """
        super().__init__()
        if backbone.turn_head is None:
            raise ValueError(f"backbone {backbone.name} has no turn head")
        self.backbone = backbone
        self.labelled_head = nn.Linear(backbone.turn_head.in_features, 1).to(backbone.mean.device)
        nn.init.zeros_(self.labelled_head.weight)
        nn.init.zeros_(self.labelled_head.bias)
        self._gather_rows = gather_rows

    def forward(self, views: Tensor, normal: Tensor) -> Tensor:
        """Compute the loss of the whole batch: the same in every process.

        Args:
            views: (2n, 3, H, H) in [0, 1], this process's share of the batch: a view of each image, then another.
            normal: (N,) bool, of the images of the whole batch.
        """
        (pair,) = self.mean_cells(views, -1)
        return self.embedding_loss(torch.cat(pair), normal)

    def mean_cells(self, views: Tensor, first: int) -> list[tuple[Tensor, Tensor]]:
        """Compute the mean cell of each map in every turn of every view.

        Args:
            views: as in `forward`.
            first: number of the finest map that is asked for; from the end if negative.

        Returns:
            For each map from there on, (4N, D_s) of the first views of the whole batch and (4N, D_s) of the others;
            the four turns of one image follow one another.
        """
        turned = torch.stack([torch.rot90(views, turns, (2, 3)) for turns in range(TURNS)], dim=1).flatten(0, 1)
        fast = turned.device.type == "cpu" and turned.dtype == torch.float32 and prefers_bfloat16()
        with torch.autocast("cpu", torch.bfloat16, enabled=fast):
            maps = self.backbone(turned)[first:]
        return [self._gather_pairs(each.to(views.dtype).mean(dim=(2, 3))) for each in maps]

    def _gather_pairs(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Join the (8n, D) embeddings of all processes: (4N, D) of first views, and of the others."""
        first, second = (self._gather_rows(half) for half in rows.chunk(2))
        return first, second

    def embedding_loss(self, embeddings: Tensor, normal: Tensor) -> Tensor:
        """Compute L from (8N, D) embeddings of the turned views and (N,) bool, whether their images are normal."""
        logs = self.backbone.turn_logits(embeddings).log_softmax(dim=1)
        turns = torch.arange(TURNS, device=logs.device).repeat(len(logs) // TURNS)
        of_normal = normal.repeat_interleave(TURNS).repeat(2)
        right = -logs.gather(1, turns[:, None])[:, 0]
        turned = _mean_where(right, of_normal) + EXPOSURE_WEIGHT * _mean_where(-logs.mean(dim=1), ~of_normal)
        return turned + LABELLED_WEIGHT * self._labelled_loss(embeddings[::TURNS], normal.repeat(2))

    def _labelled_loss(self, upright: Tensor, normal: Tensor) -> Tensor:
        """Compute L_labelled from (2N, D) embeddings of upright views and (2N,) bool; 0 without an anomalous one."""
        logits = self.labelled_head(LENGTH * F.normalize(upright, dim=1))[:, 0]
        loss = _mean_where(F.softplus(logits), normal) + _mean_where(F.softplus(-logits), ~normal)
        return loss * (~normal).any()


def _mean_where(losses: Tensor, chosen: Tensor) -> Tensor:
    """Mean of the chosen of (N,) losses; 0 where there are none."""
    return (losses * chosen).sum() / chosen.sum().clamp(min=1)
