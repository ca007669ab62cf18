"""Depths of a transformer as feature maps of one stride, for images of any size and shape."""

from __future__ import annotations

from inspect import signature
from math import pi
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DEPTHS = (1 / 3, 1 / 2, 2 / 3, 5 / 6)  # of all blocks, where maps are taken: 4, 6, 8, 10 of 12


def chosen_blocks(count: int) -> tuple[int, ...]:
    """Choose the blocks, counted from one, whose outputs are taken."""
    return tuple(sorted({max(1, round(depth * count)) for depth in DEPTHS}))


class CentredRotaryPositions(nn.Module):
    """Rotary position embedding of DINOv3 (Siméoni et al. 2025) for a grid of any size.

    The same values as timm's, whose code takes the size as a constant, so that an exported graph would keep one size.
    """

    periods: Tensor

    def __init__(self, periods: Tensor) -> None:
        """Take over the (D / 4,) periods, in units of half an image side, for heads of D channels."""
        super().__init__()
        self.register_buffer("periods", periods, persistent=False)

    def get_embed(self, shape: tuple[int, int]) -> Tensor:
        """Compute sines and cosines for the centres of (h, w) cells, row-major: (h*w, 2 D)."""
        axes = [(torch.arange(cells, device=self.periods.device) + 0.5) / cells * 2 - 1 for cells in shape]
        places = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 1)  # (h*w, 2) in [-1, 1]
        angles = (2 * pi * places[..., None] / self.periods).flatten(1).tile(2)  # (h*w, D)
        return torch.cat([angles.sin(), angles.cos()], dim=1)


class Transformer(nn.Module):
    """A transformer of timm that returns the tokens of some blocks as maps, and its class token.

    timm interpolates position embeddings to the grid of the image. Register tokens take part in attention only.
    """

    def __init__(self, network: Any, blocks: tuple[int, ...], patch: int) -> None:
        """Wrap a network.

        Args:
            network: with `forward_intermediates`, for images of any multiple of the patch.
            blocks: counted from one, whose outputs are taken.
            patch: its side, pixels.
        """
        super().__init__()
        self.network = network
        rope: Any = getattr(network, "rope", None)
        if type(rope).__name__ == "RotaryEmbeddingDinoV3" and _is_plain(rope):
            network.rope = CentredRotaryPositions(rope.periods)
        self.indices = [block - 1 for block in blocks]
        self.patch = patch
        takes_prefix = "return_prefix_tokens" in signature(network.forward_intermediates).parameters
        self.has_class_token = (
            takes_prefix and getattr(network, "num_prefix_tokens", 0) > 0 and network.cls_token is not None
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Compute the maps of the blocks, and the class token of the last of them.

        Args:
            x: (N, 3, H, W), normalised; sides that are no multiple of the patch are enlarged to the next one.

        Returns:
            For each block (N, D, h, w), h = H / patch and w = W / patch; where there is a class token (N, D, 1, 1).
        """
        sides = [(side + self.patch - 1) // self.patch * self.patch for side in x.shape[2:]]
        # A graph for images of any size cannot ask; there it changes nothing where sides are multiples.
        if torch.compiler.is_exporting() or sides != [*x.shape[2:]]:
            x = F.interpolate(x, size=sides, mode="bilinear")
        options = {"return_prefix_tokens": True} if self.has_class_token else {}
        outputs = self.network.forward_intermediates(x, indices=self.indices, intermediates_only=True, **options)
        if not self.has_class_token:
            return list(outputs)
        return [*(tokens for tokens, _ in outputs), outputs[-1][1][:, 0, :, None, None]]


def _is_plain(rope: Any) -> bool:
    """Whether a rotary position embedding of timm is the one that `CentredRotaryPositions` computes."""
    settings = rope.rotate_half, rope.normalize_coords, rope.grid_indexing, rope.grid_offset
    return settings == (True, "separate", "ij", 0.0)
