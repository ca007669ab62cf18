"""The compact residual network packed for processors with bfloat16: the same function in a third of the time.

Weights are laid out for oneDNN once for each image size instead of at every call, activations and sums are fused into
the convolutions, and the maps in between are bfloat16. Inference on a CPU only.
"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Any, cast

import torch
from torch import Tensor, nn

from anomaly_cli.detector.backbones.compact_resnet import STRIDES, CompactResNet, ConvNorm, ResidualBlock
from anomaly_cli.detector.devices import prefers_bfloat16

LAYOUTS = 16  # sizes of image, small copies among them, whose weights are kept laid out, 10 MB each


@cache
def can_prepack() -> bool:
    """Whether this build of torch has the operations that its own compiler (inductor) packs convolutions with."""
    operations = hasattr(torch.ops.mkldnn, "_convolution_pointwise") and hasattr(
        torch._C._nn, "mkldnn_reorder_conv2d_weight"
    )
    return torch.backends.mkldnn.is_available() and operations


class _PackedConvolution:
    """One fused convolution of the network with what may follow it: a ReLU, or a sum and a ReLU.

    Which layout oneDNN wants depends on processor and size of the input. From plain weights it reaches it fast, from
    weights that are laid out for another size at a hundred times the cost of the convolution (seen on AMD Zen 5).
    """

    def __init__(self, layer: nn.Module, dtype: torch.dtype) -> None:
        conv = cast(nn.Conv2d, cast(ConvNorm, layer).conv)
        self.shape: tuple[Any, ...] = (conv.padding, conv.stride, conv.dilation, conv.groups)
        self.weight = conv.weight.detach().to(dtype).contiguous(memory_format=torch.channels_last)
        self.bias = cast(Tensor, conv.bias).detach().to(dtype)
        self._laid_out = lru_cache(LAYOUTS)(self._lay_out)

    def _lay_out(self, *size: int) -> Tensor:
        """Lay the weights out for inputs of this (N, D, H, W)."""
        reorder: Any = torch._C._nn.mkldnn_reorder_conv2d_weight
        return cast(Tensor, reorder(self.weight.to_mkldnn(), *self.shape, size))

    def __call__(self, x: Tensor) -> Tensor:
        return cast(
            Tensor,
            torch.ops.mkldnn._convolution_pointwise(
                x, self._laid_out(*x.shape), self.bias, *self.shape, "relu", [], ""
            ),
        )

    def add(self, x: Tensor, shortcut: Tensor) -> Tensor:
        return cast(
            Tensor,
            torch.ops.mkldnn._convolution_pointwise.binary(
                x, shortcut, self._laid_out(*x.shape), self.bias, *self.shape, "add", 1.0, "relu", [], ""
            ),
        )


class _Shortcut:
    """A 1×1 convolution as a matrix product: for some sizes of image oneDNN's convolution takes ten times as long."""

    def __init__(self, layer: nn.Module, dtype: torch.dtype) -> None:
        conv = cast(nn.Conv2d, cast(ConvNorm, layer).conv)
        self.step = conv.stride[0]
        self.matrix = conv.weight.detach()[:, :, 0, 0].T.to(dtype).contiguous()
        self.bias = cast(Tensor, conv.bias).detach().to(dtype)

    def __call__(self, x: Tensor) -> Tensor:
        cells = x[:, :, :: self.step, :: self.step].permute(0, 2, 3, 1)  # (N, h, w, D)
        product = torch.addmm(self.bias, cells.reshape(-1, cells.shape[3]), self.matrix)
        return product.view(*cells.shape[:3], -1).permute(0, 3, 1, 2)


class _PackedBlock:
    def __init__(self, block: ResidualBlock, dtype: torch.dtype) -> None:
        self.first = _PackedConvolution(block.first, dtype)
        self.second = _PackedConvolution(block.second, dtype)
        same = isinstance(block.shortcut, nn.Identity)
        self.shortcut = None if same else _Shortcut(block.shortcut, dtype)

    def __call__(self, batches: list[Tensor]) -> list[Tensor]:
        inner = [self.first(x) for x in batches]
        shortcuts = batches if self.shortcut is None else [self.shortcut(x) for x in batches]
        return [self.second.add(x, shortcut) for x, shortcut in zip(inner, shortcuts, strict=True)]


class PrepackedResNet:
    """A `CompactResNet` whose normalisations are folded, frozen; not a module."""

    def __init__(self, network: CompactResNet, dtype: torch.dtype) -> None:
        """Pack the weights.

        Args:
            network: fused, on the CPU.
            dtype: of weights and of the maps between layers.
        """
        self.dtype = dtype
        self.network = network
        self.stem = _PackedConvolution(network.stem, dtype)
        self.stages = [
            [_PackedBlock(cast(ResidualBlock, block), dtype) for block in cast(nn.Sequential, stage)]
            for stage in network.stages
        ]

    def __deepcopy__(self, _memo: dict[int, Any]) -> PrepackedResNet:
        """Share this: it is immutable, and packed weights have no storage to copy."""
        return self

    def __call__(self, *batches: Tensor) -> list[list[Tensor]]:
        """Compute what the network does on each of several (N, 3, H, W): one float32 map for each stage."""
        # Where the coarsest map is one cell wide, the packed convolutions return noise, even infinities.
        narrow = [batch.shape[3] <= STRIDES[-1] for batch in batches]
        packed = iter(self._maps([batch for batch, small in zip(batches, narrow, strict=True) if not small]))
        return [self.network(b) if small else next(packed) for b, small in zip(batches, narrow, strict=True)]

    def _maps(self, batches: list[Tensor]) -> list[list[Tensor]]:
        """Compute all batches layer by layer, so that the weights of a layer are read from memory once."""
        current = [self.stem(batch.to(self.dtype)) for batch in batches]
        maps: list[list[Tensor]] = [[] for _ in batches]
        for stage in self.stages:
            for block in stage:
                current = block(current)
            for each, x in zip(maps, current, strict=True):
                each.append(x.float())
        return maps


def prepack(network: CompactResNet) -> PrepackedResNet | None:
    """Pack a fused network; None where torch cannot, or in float32, which gains less at twice the memory."""
    return PrepackedResNet(network, torch.bfloat16) if can_prepack() and prefers_bfloat16() else None
