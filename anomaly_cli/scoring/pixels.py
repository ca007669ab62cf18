"""From an image file to what a detector takes: read as the settings of a model say, and turned into tensors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anomaly_cli.config import DetectorConfig
from anomaly_cli.detector.tiles import picture_scale
from anomaly_cli.images.decode import LoadedImage, load_image
from anomaly_cli.images.roi import Roi, restrict


def read_image(
    path: Path, config: DetectorConfig, roi: Roi | None = None, *, with_quality: bool = False, tiled: bool = True
) -> LoadedImage:
    """Read an image at network size.

    Args:
        path: of the file.
        config: settings of the model.
        roi: region of interest; None for all of the image.
        with_quality: whether to measure the quality, too.
        tiled: false reads no picture for tiles, whatever the settings say.

    Raises:
        UnreadableImageError: with the reason in a few words.
        ConfigError: its region of interest cannot be used.
    """
    image = load_image(
        path,
        config.image_size,
        step=config.size_step,
        window=config.window,
        with_quality=with_quality,
        scale=picture_scale(config.smallest_defect) if tiled and config.smallest_defect is not None else None,
    )
    return image if roi is None else restrict(image, roi.mask_of(path, image.height, image.width))


def to_tensor(image: LoadedImage) -> Tensor:
    """Convert to a (1, 3, h, w) float tensor in [0, 1]."""
    return pixels_to_tensor(image.pixels)


def pixels_to_tensor(pixels: NDArray[np.uint8], device: torch.device | None = None) -> Tensor:
    """Convert (h, w, 3) to a (1, 3, h, w) float tensor in [0, 1]."""
    return torch.from_numpy(pixels).to(device).permute(2, 0, 1)[None].float().div_(255)


def inspected_tensor(images: Sequence[LoadedImage], device: torch.device) -> Tensor | None:
    """Stack the regions of interest of images of one size: (N, h, w) bool; None if they have none."""
    masks = [torch.from_numpy(image.inspected) for image in images if image.inspected is not None]
    return torch.stack(masks).to(device) if masks else None
