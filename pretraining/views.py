"""Random views of training pictures: geometry and light as inspection cameras vary them, on whole batches."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

GREY = (0.299, 0.587, 0.114)  # ITU-R 601 luma


def random_views(
    pictures: Tensor, size: int, generator: torch.Generator, noise_generator: torch.Generator | None = None
) -> Tensor:
    """Cut one randomly turned, scaled, lit and blurred view from each picture.

    Args:
        pictures: (N, 3, H, W) float in [0, 1].
        size: side of the square views, pixels.
        generator: source of every random number, on the CPU.
        noise_generator: source of the noise of the pixels, on the device of the pictures; None for `generator`.

    Returns:
        (N, 3, size, size) float in [0, 1].
    """
    grid = F.affine_grid(_random_affines(len(pictures), generator), [len(pictures), 3, size, size], align_corners=False)
    views = F.grid_sample(pictures, grid.to(pictures), padding_mode="reflection", align_corners=False)
    return _random_light(views, generator, noise_generator or generator).clamp(0, 1)


def _uniform(count: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return torch.rand(count, generator=generator) * (high - low) + low


def _random_affines(count: int, generator: torch.Generator) -> Tensor:
    """Half of the views keep within 10° of upright, a quarter turn by 90° steps, a quarter by any angle."""
    kind = torch.rand(count, generator=generator)
    small = _uniform(count, -math.pi / 18, math.pi / 18, generator)
    quarter = torch.randint(0, 4, (count,), generator=generator) * (math.pi / 2)
    angle = torch.where(kind < 0.5, small, torch.where(kind < 0.75, quarter, small * 18))
    zoom = _uniform(count, math.log(0.4), math.log(1.05), generator).exp()  # share of the side that is seen
    aspect = _uniform(count, -0.15, 0.15, generator).exp()
    flip = torch.where(torch.rand(count, generator=generator) < 0.5, -1.0, 1.0)
    room = (1 - zoom).clamp(min=0)
    x, y = (_uniform(count, -1, 1, generator) * room for _ in range(2))
    cos, sin = angle.cos() * zoom, angle.sin() * zoom
    rows = [cos * aspect * flip, -sin / aspect, x, sin * aspect * flip, cos / aspect, y]
    return torch.stack(rows, dim=1).view(count, 2, 3)


def _random_light(views: Tensor, generator: torch.Generator, noise_generator: torch.Generator) -> Tensor:
    N, _, H, W = views.shape

    def per_view(low: float, high: float, share: float, neutral: float) -> Tensor:
        values = _uniform(N, low, high, generator)
        used = torch.rand(N, generator=generator) < share
        return torch.where(used, values, neutral).view(N, 1, 1, 1).to(views)

    grey = (views * torch.tensor(GREY).to(views).view(1, 3, 1, 1)).sum(1, keepdim=True)
    views = torch.lerp(views, grey.expand_as(views), per_view(1, 1, 0.35, 0))
    views = torch.lerp(views, grey.expand_as(views), per_view(-0.4, 0.6, 0.4, 0))
    centre = views.mean(dim=(2, 3), keepdim=True)
    views = (views - centre) * per_view(0.5, 1.5, 0.7, 1) + centre * per_view(0.7, 1.3, 0.7, 1)
    direction = _uniform(N, 0, 2 * math.pi, generator).view(N, 1, 1, 1).to(views)
    y = torch.linspace(-1, 1, H).to(views).view(1, 1, H, 1)
    x = torch.linspace(-1, 1, W).to(views).view(1, 1, 1, W)
    views = views * (1 + per_view(0, 0.3, 0.3, 0) * (x * direction.cos() + y * direction.sin()))
    blurred = F.avg_pool2d(views, 3, 1, 1, count_include_pad=False)
    views = torch.lerp(views, blurred, per_view(0.3, 1, 0.2, 0))
    noise = torch.randn(views.shape, generator=noise_generator, device=noise_generator.device).to(views)
    return views + noise * per_view(0.005, 0.05, 0.25, 0)
