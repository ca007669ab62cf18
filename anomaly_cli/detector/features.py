"""From feature maps of a backbone to the embeddings of each scale."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from anomaly_cli.detector.backbones.backbone import CLASS_TOKEN, Backbone
from anomaly_cli.detector.inspected import pool_inspected
from anomaly_cli.detector.scales import (
    BLOCK,
    COARSE_SCALE,
    COARSE_STRIDE,
    COPY_SIDES,
    FINEST_STEP,
    IMAGE_SCALE,
    LEARNED_SCALE,
    POOLED_SCALES,
    SMALL_SCALE,
    TURNED_SCALE,
    WHOLE_SCALES,
    cell_step,
    reduction,
)

POOLED_STRIDES = (16, 32)  # of the maps that the pooled scales pool
BORDER = 6  # pixels at each side of a turned copy, about a tenth, that its central part is without


def scale_features(
    backbone: Backbone,
    images: Tensor,
    names: tuple[str, ...],
    copies: Mapping[str, Tensor] | None = None,
    inspected: Tensor | None = None,
) -> dict[str, Tensor]:
    """Compute the raw cells of the named scales.

    Local scales are put on a grid by `to_scale_grid` and L2-normalised, so that contrast has no effect. A pooled scale
    concatenates the means of the coarse maps and the standard deviation of the first: content and style; of a
    transformer those of its last map, and its class token.
    Without the small scale the image is its own small copy.

    Args:
        backbone: in eval mode for detection.
        images: (N, 3, H, W) float RGB in [0, 1].
        names: strides or blocks, `COARSE_SCALE`, and some of `WHOLE_SCALES`; the learned scale beside the turned one.
        copies: (N, 3, h', w') reduced copies, of the scales that see such (`COPY_SIDES`); made here if None.
        inspected: (N, H, W) bool, the pixels whose cells the pooled scales pool; None for all.

    Returns:
        (N, D, h, w) by name; h = w = 1 for the pooled scales.
    """
    if copies is None:
        copies = reduced_copies(images, names)
    maps = feature_maps(backbone, images, copies)
    means = turned_means(backbone, copies[TURNED_SCALE]) if TURNED_SCALE in names else torch.empty(0)
    features = {}
    for name in names:
        if name in POOLED_SCALES:
            features[name] = pooled_embedding(maps[name], inspected)
        elif name == TURNED_SCALE:
            features[name] = turn_losses(backbone, means)
        elif name == LEARNED_SCALE:
            features[name] = learned_embedding(means)
        elif name == COARSE_SCALE:
            features[name] = F.normalize(
                maps[SMALL_SCALE if SMALL_SCALE in maps else IMAGE_SCALE][coarse_map(backbone)], dim=1
            )
        else:
            features[name] = F.normalize(to_scale_grid(maps[IMAGE_SCALE][name], backbone.stride_of[name]), dim=1)
    return features


def reduced_copies(images: Tensor, names: tuple[str, ...]) -> dict[str, Tensor]:
    """Make the copies of (N, 3, H, W) images that the named scales see: (N, 3, h, w) by name."""
    return {name: reduced(images, side) for name, side in COPY_SIDES.items() if name in names}


def reduced(images: Tensor, side: int) -> Tensor:
    """Average (N, 3, H, W) images to copies of about side² pixels: (N, 3, h, w)."""
    return F.avg_pool2d(images, reduction(images.shape[2], images.shape[3], side))


def feature_maps(backbone: Backbone, images: Tensor, copies: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Compute the maps, by name, of (N, 3, H, W) images and of the copies that pooled scales see, by scale."""
    batches = {IMAGE_SCALE: images} | {name: copy for name, copy in copies.items() if name in POOLED_SCALES}
    by_batch = backbone.forward_batches([*batches.values()])
    return {name: dict(zip(backbone.names, each, strict=True)) for name, each in zip(batches, by_batch, strict=True)}


def turned_means(backbone: Backbone, copies: Tensor) -> Tensor:
    """Compute the mean cells of the coarsest map of four views of each copy, each view in four turns.

    The views are the copy, its central part enlarged to the size of the copy, and both mirrored.

    Args:
        backbone: whose network sees the views.
        copies: (N, 3, h, w) float RGB in [0, 1]. Ignored pixels have one colour, as in stage 1, and are not left out.

    Returns:
        (4, V, N, D), of each turn each view.
    """
    part = F.interpolate(copies[:, :, BORDER:-BORDER, BORDER:-BORDER], copies.shape[2:], mode="bilinear")
    views = torch.stack([copies, part, copies.flip(3), part.flip(3)])
    # Two turns of the same form pass the network together.
    pairs = [torch.cat([torch.rot90(views, turns + first, (3, 4)) for turns in (0, 2)]) for first in (0, 1)]
    rows = [backbone(pair.flatten(0, 1))[-1].mean(dim=(2, 3)) for pair in pairs]
    return torch.stack([each.unflatten(0, (2, len(views), -1)) for each in rows], dim=1).flatten(0, 1)


def turn_losses(backbone: Backbone, means: Tensor) -> Tensor:
    """Compute how unsure the network is of each turn, averaged over the views.

    Args:
        backbone: with a `turn_head`.
        means: (4, V, N, D) of `turned_means`.

    Returns:
        (N, 4, 1, 1) square roots of the mean negative log-likelihood of each true turn, so that the squared distance
        from zero is four times their mean (Golan & El-Yaniv 2018; Hendrycks et al. 2019).
    """
    losses = [
        -backbone.turn_logits(each.flatten(0, 1)).log_softmax(dim=1)[:, turns] for turns, each in enumerate(means)
    ]
    # From 1e-4 on: the square root of zero has no slope, and a distance of zero no logarithm.
    of_views: Tensor = torch.stack(losses, dim=1).unflatten(0, (means.shape[1], -1)).mean(dim=0)
    return of_views.clamp(min=1e-4).sqrt()[:, :, None, None]


def learned_embedding(means: Tensor) -> Tensor:
    """Embed an image as its turned views: (4, V, N, D) of `turned_means` to (N, 4·D, 1, 1) of unit length.

    The directions of all views are averaged and those of the turns concatenated.
    """
    directions = F.normalize(means, dim=3).mean(dim=1)  # (4, N, D)
    return F.normalize(directions.transpose(0, 1).flatten(1), dim=1)[:, :, None, None]


def to_scale_grid(feature_map: Tensor, stride: int) -> Tensor:
    """Compute the cells of a local scale, robust to small shifts: (N, D, h, w) to (N, D, h', w').

    A stride finer than `FINEST_STEP` is average-pooled to it: fine features at the cost of stride 8. Cells of that
    stride are averaged with the mean of their 3×3 neighbourhood (Roth et al. 2022 take that mean alone). The receptive
    field of a coarser cell covers its neighbourhood anyway.
    """
    if stride < FINEST_STEP:
        return F.avg_pool2d(feature_map, FINEST_STEP // stride)
    return smooth_3x3(feature_map) if stride == FINEST_STEP else feature_map


def smooth_3x3(feature_map: Tensor) -> Tensor:
    """Average each cell with the mean of its 3×3 neighbourhood: the shape (N, D, h, w) stays."""
    return 0.5 * (feature_map + F.avg_pool2d(feature_map, 3, 1, 1, count_include_pad=False))


def coarse_map(backbone: Backbone) -> str:
    """Name the map of the copy whose cells are the coarse ones: the coarsest up to `COARSE_STRIDE`, the last block."""
    names = [name for name, stride in backbone.stride_of.items() if stride <= COARSE_STRIDE]
    return names[-1] if names else backbone.names[0]


def cells_step(backbone: Backbone, name: str, height: int, width: int) -> int | None:
    """Compute `cell_step` of a scale of this backbone; None for a scale of one cell."""
    if name in WHOLE_SCALES:
        return None
    return cell_step(name, height, width, backbone.stride_of[coarse_map(backbone) if name == COARSE_SCALE else name])


def pooled_maps(maps: dict[str, Tensor]) -> list[Tensor]:
    """Choose the maps that the pooled scales pool, finest first; of a transformer the last."""
    names = [name for name in maps if name != CLASS_TOKEN]
    coarse = [] if names[-1].startswith(BLOCK) else [name for name in names if int(name) in POOLED_STRIDES]
    return [maps[name] for name in coarse or names[-1:]]


def pooled_embedding(maps: dict[str, Tensor], inspected: Tensor | None = None) -> Tensor:
    """Pool (N, D_s, h_s, w_s) maps by name into one cell of each image, (N, D, 1, 1), or its inspected part.

    A region of interest goes without the class token, which sees the whole image.
    """
    coarse = pooled_maps(maps)
    if inspected is not None:
        return torch.cat(pool_inspected(coarse, inspected), dim=1)
    means = [m.mean(dim=(2, 3), keepdim=True) for m in coarse]
    # Not `Tensor.std`, which takes seven times as long here.
    spread = (coarse[0] - means[0]).square().mean(dim=(2, 3), keepdim=True).sqrt()
    return torch.cat([*means, *class_token(maps), spread], dim=1)


def class_token(maps: dict[str, Tensor]) -> list[Tensor]:
    """Take the (N, D, 1, 1) class token of a transformer, where there is one."""
    return [maps[CLASS_TOKEN]] if CLASS_TOKEN in maps else []
