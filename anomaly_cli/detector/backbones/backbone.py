"""Backbones: image batch in, feature maps at several strides out; three kinds behind one class.

`embedded` reads the weights shipped in this package, `scratch` starts from random weights, any other name is a
torchvision model with its pretrained weights from a file, torch's cache or the network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from anomaly_cli.detector.backbones.bfloat16_resnet import PrepackedResNet, prepack
from anomaly_cli.detector.backbones.compact_resnet import CompactResNet

EMBEDDED = "embedded"
SCRATCH = "scratch"

MEAN = (0.485, 0.456, 0.406)  # of ImageNet's pixels, as every torchvision backbone expects
STD = (0.229, 0.224, 0.225)


class Backbone(nn.Module):
    """Network that computes one feature map for each stride."""

    mean: Tensor
    std: Tensor

    def __init__(self, name: str, network: nn.Module, strides: tuple[int, ...]) -> None:
        super().__init__()
        self.name = name
        self.network = network
        self.strides = strides
        self._packed: PrepackedResNet | None = None
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Compute the feature map of every stride.

        Args:
            images: (N, 3, H, W) float RGB in [0, 1].

        Returns:
            For each stride one (N, D_s, h_s, w_s) map, finest first.
        """
        return self.forward_batches([images])[0]

    def forward_batches(self, batches: Sequence[Tensor]) -> list[list[Tensor]]:
        """Compute what `forward` does on batches of different sizes, together where that is faster."""
        inputs = [((x - self.mean) / self.std).contiguous(memory_format=torch.channels_last) for x in batches]
        if self._packed is not None and inputs[0].device.type == "cpu" and not torch.compiler.is_compiling():
            return self._packed(*inputs)
        network: Callable[[Tensor], Any] = self.network
        answers = [network(x) for x in inputs]
        return [list(maps.values()) if isinstance(maps, dict) else list(maps) for maps in answers]

    def prepare_for_inference(self) -> Self:
        """Freeze the weights for inference, and lay them out for speed where that is possible."""
        if isinstance(self.network, CompactResNet) and self.mean.device.type == "cpu":
            self._packed = prepack(self.network.eval().fuse())
        return self
