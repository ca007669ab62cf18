"""Regions of interest on feature and distance maps: a cell that is ignored has the distance NaN."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

HALF = 0.5  # of a cell: from this share up it is inspected


def inspected_cells(inspected: Tensor, height: int, width: int) -> Tensor:
    """Say which cells of a grid are inspected: those of which half is, or, where none is, as much as of any other.

    Args:
        inspected: (N, H, W) bool, of pixels.
        height: of the grid, cells.
        width: likewise.

    Returns:
        (N, height, width) bool, in each image true somewhere if `inspected` is.
    """
    shares = F.adaptive_avg_pool2d(inspected[:, None].float(), (height, width))[:, 0]
    return shares >= shares.flatten(1).amax(dim=1).clamp(max=HALF)[:, None, None]


def pool_inspected(maps: Sequence[Tensor], inspected: Tensor) -> list[Tensor]:
    """Pool the inspected cells of each (N, D, h, w) map: their means, and the standard deviation of the first.

    Returns:
        (N, D, 1, 1) each.
    """
    pooled = []
    for feature_map in maps:
        weights = inspected_cells(inspected, *feature_map.shape[2:])[:, None].float()
        weights /= weights.sum(dim=(2, 3), keepdim=True)
        pooled.append((feature_map * weights).sum(dim=(2, 3), keepdim=True))
        if feature_map is maps[0]:
            spread = ((feature_map - pooled[0]).square() * weights).sum(dim=(2, 3), keepdim=True).sqrt()
    return [*pooled, spread]


def has_ignored(maps: Sequence[Tensor]) -> bool:
    """Whether a distance map has cells outside a region of interest; an exported graph has none."""
    return not torch.compiler.is_compiling() and any(bool(each.isnan().any()) for each in maps)


def fuse_inspected(maps: Sequence[Tensor], weights: Sequence[Tensor], finest: Tensor) -> Tensor:
    """Average (N, h_s, w_s) maps on the grid of the finest, each cell over the scales that inspect it.

    Args:
        maps: NaN where ignored.
        weights: one of each map.
        finest: (N, h, w), one of the maps, or of the same grid.

    Returns:
        (N, h, w), NaN where the finest map ignores a cell.
    """

    def on_grid(values: Tensor) -> Tensor:
        return F.interpolate(values[:, None], size=finest.shape[1:], mode="bilinear")[:, 0]

    total, known = torch.zeros_like(finest), torch.zeros_like(finest)
    for each, weight in zip(maps, weights, strict=True):
        total += weight * on_grid(each.nan_to_num())
        known += weight * on_grid((~each.isnan()).float())
    return (total / known).masked_fill(finest.isnan(), torch.nan)


def only_inspected(features: Tensor, ignored: Tensor) -> Tensor:
    """Take the inspected cells of one image: (1, D, h, w) and (1, h, w) bool to (1, D, 1, n)."""
    return features.flatten(2)[:, :, None, ~ignored.flatten()]
