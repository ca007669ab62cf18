"""Backbones: image batch in, feature maps at several strides or depths out; all kinds behind one class.

`embedded` reads the weights shipped in this package, `scratch` starts from random weights, any other name is a model
of torchvision or timm with its pretrained weights from a file, a cache or the network.
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
TURNS = 4  # quarters by which a picture may be turned; the classes of a turn head
CLASS_TOKEN = "class"  # name of the output that is no map: one cell for the whole image


class Backbone(nn.Module):
    """Network that computes one feature map for each stride, or for each of several depths of one stride.

    Attributes:
        name: as `build_backbone` takes it.
        strides: of the maps, pixels.
        names: of what `forward` returns: strides or depths, the class token of a transformer last.
        libraries: that the network comes from, beside torchvision.
        turn_head: of a network that stage 1 trains; None for others.
        turn_information: (), share of the uncertainty about the turn of a new normal image that the head removes, in
            [0, 1]; only beside a head.
    """

    libraries: tuple[str, ...] = ()

    mean: Tensor
    std: Tensor
    turn_information: Tensor

    def __init__(
        self,
        name: str,
        network: nn.Module,
        strides: tuple[int, ...],
        names: tuple[str, ...] = (),
        normalisation: tuple[tuple[float, ...], tuple[float, ...]] = (MEAN, STD),
        turn_head: nn.Linear | None = None,
    ) -> None:
        """Wrap a network.

        Args:
            name: of the backbone.
            network: (N, 3, H, W) normalised pixels to its outputs, in a list or in a dictionary.
            strides: of its maps.
            names: of its outputs; the strides if not given.
            normalisation: mean and standard deviation of the pixels of each channel.
            turn_head: takes the mean of the coarsest map, says by how many quarters the image was turned.
        """
        super().__init__()
        self.name = name
        self.network = network
        self.strides = strides
        self.names = names or tuple(map(str, strides))
        self._packed: PrepackedResNet | None = None
        self.turn_head = turn_head
        if turn_head is not None:
            self.register_buffer("turn_information", torch.zeros(()))
        self.register_buffer("mean", torch.tensor(normalisation[0]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(normalisation[1]).view(1, 3, 1, 1), persistent=False)

    @property
    def stride_of(self) -> dict[str, int]:
        """Stride of each map, finest and shallowest first; without the class token."""
        return dict(zip(self.names, self.strides, strict=False))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Compute the feature map of every name.

        Args:
            images: (N, 3, H, W) float RGB in [0, 1].

        Returns:
            For each name one (N, D_s, h_s, w_s) map, finest first; the class token is one cell.
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

    def turn_logits(self, pooled: Tensor) -> Tensor:
        """Compute the logits of the turn, (N, 4), from the mean cell of the coarsest map, (N, D).

        Raises:
            ValueError: this backbone has no turn head.
        """
        if self.turn_head is None:
            raise ValueError(f"backbone {self.name} has no turn head")
        logits: Tensor = self.turn_head(pooled)
        return logits

    def prepare_for_inference(self) -> Self:
        """Freeze the weights for inference, and lay them out for speed where that is possible."""
        if isinstance(self.network, CompactResNet):
            fused = self.network.eval().fuse()  # on every device: a model file holds fused weights
            self._packed = prepack(fused) if self.mean.device.type == "cpu" else None
        return self
