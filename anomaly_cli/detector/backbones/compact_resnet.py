"""The compact residual network behind the `embedded` and `scratch` backbones: its layers, no weights, no files."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

STRIDES = (4, 8, 16, 32)
WIDTHS = (48, 96, 192, 320)
DEPTHS = (1, 2, 2, 2)
STEM_WIDTH = 32


class ConvNorm(nn.Module):
    """Convolution and batch normalisation, which `fuse` folds into one convolution."""

    def __init__(self, width_in: int, width_out: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv: nn.Module = nn.Conv2d(width_in, width_out, kernel, stride, kernel // 2, bias=False)
        self.norm: nn.Module = nn.BatchNorm2d(width_out)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, width_in, H, W) to (N, width_out, ⌈H/stride⌉, ⌈W/stride⌉)."""
        out: Tensor = self.norm(self.conv(x))
        return out

    def fuse(self) -> None:
        """Fold the frozen normalisation into the convolution: the same function, one pass over memory less."""
        if isinstance(self.conv, nn.Conv2d) and isinstance(self.norm, nn.BatchNorm2d):
            self.conv = fuse_conv_bn_eval(self.conv, self.norm)
            self.norm = nn.Identity()


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut (He et al. 2016, basic block)."""

    def __init__(self, width_in: int, width_out: int, stride: int) -> None:
        super().__init__()
        self.first = ConvNorm(width_in, width_out, 3, stride)
        self.second = ConvNorm(width_out, width_out, 3)
        identity = stride == 1 and width_in == width_out
        self.shortcut = nn.Identity() if identity else ConvNorm(width_in, width_out, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, width_in, H, W) to (N, width_out, ⌈H/stride⌉, ⌈W/stride⌉)."""
        return torch.relu(self.second(torch.relu(self.first(x))) + self.shortcut(x))


class CompactResNet(nn.Module):
    """Residual network with one output for each stage, narrow at fine grids.

    Widths and depths were chosen for speed on a CPU: every stage costs about the same (docs/backbone.md).
    """

    def __init__(
        self, widths: tuple[int, ...] = WIDTHS, depths: tuple[int, ...] = DEPTHS, stem_width: int = STEM_WIDTH
    ) -> None:
        super().__init__()
        self.widths = widths
        self.stem = ConvNorm(3, stem_width, 3, 2)
        stages = []
        width_in = stem_width
        for width, depth in zip(widths, depths, strict=True):
            blocks = [ResidualBlock(width_in if i == 0 else width, width, 2 if i == 0 else 1) for i in range(depth)]
            stages.append(nn.Sequential(*blocks))
            width_in = width
        self.stages = nn.ModuleList(stages)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Compute the feature map of every stage.

        Args:
            x: (N, 3, H, W), ImageNet-normalised RGB.

        Returns:
            For each stage one (N, D_s, ⌈H/stride⌉, ⌈W/stride⌉) map, strides 4, 8, 16, 32.
        """
        x = torch.relu(self.stem(x))
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps

    def fuse(self) -> CompactResNet:
        """Fold every batch normalisation for inference; the network must be in eval mode."""
        for module in list(self.modules()):
            if isinstance(module, ConvNorm):
                module.fuse()
        return self
