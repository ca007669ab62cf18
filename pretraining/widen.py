"""Widen a trained backbone without changing what it computes (Net2WiderNet, Chen et al. 2016)."""

from __future__ import annotations

import torch
from torch import Tensor

from anomaly_cli.detector.backbones.compact_resnet import DEPTHS, STEM_WIDTH, WIDTHS

NOISE = 0.05  # of the spread of a kernel's weights; without it the copies of a channel would never part


def widened(state: dict[str, Tensor], seed: int, noise: float = NOISE) -> dict[str, Tensor]:
    """Make weights of `CompactResNet` from those of one that is as wide or narrower.

    Channels are copied, and the weights of what reads a copied channel are shared among its copies.

    Args:
        state: floating point tensors of the narrower network, normalisations not fused.
        seed: of the choice which channels are copied, and of the noise.
        noise: on the weights of copied channels, so that they can learn different things.
    """
    generator = torch.Generator().manual_seed(seed)
    wide: dict[str, Tensor] = {}

    def copy(width: int, wanted: int) -> Tensor:
        return torch.cat([torch.arange(width), torch.randint(width, (wanted - width,), generator=generator)])

    def widen(layer: str, inputs: Tensor, outputs: Tensor) -> None:
        kernel = state[f"{layer}.conv.weight"].float()[outputs][:, inputs]
        copies = torch.bincount(inputs)[inputs].view(1, -1, 1, 1)
        spread = noise * kernel.std() * (copies > 1)
        kernel = kernel / copies + spread * torch.randn(kernel.shape, generator=generator)
        wide[f"{layer}.conv.weight"] = kernel.contiguous()
        for name in ("weight", "bias", "running_mean", "running_var"):
            wide[f"{layer}.norm.{name}"] = state[f"{layer}.norm.{name}"].float()[outputs]

    outputs = copy(len(state["stem.norm.weight"]), STEM_WIDTH)
    widen("stem", torch.arange(3), outputs)
    for stage, (depth, wanted) in enumerate(zip(DEPTHS, WIDTHS, strict=True)):
        width, inputs = len(state[f"stages.{stage}.0.second.norm.weight"]), outputs
        outputs = copy(width, wanted)
        for block in (f"stages.{stage}.{i}" for i in range(depth)):
            between = copy(width, wanted)
            widen(f"{block}.first", inputs, between)
            widen(f"{block}.second", between, outputs)
            if f"{block}.shortcut.conv.weight" in state:
                widen(f"{block}.shortcut", inputs, outputs)
            inputs = outputs
    return wide
