"""Ground-truth masks of anomalies: find them, match them to images, read them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from anomaly_cli.errors import InputError
from anomaly_cli.images.find import IMAGE_SUFFIXES
from anomaly_cli.statistics.pixel_metrics import Map, Mask

MASK_SUFFIX = "_mask"
SHAPE_TOLERANCE = 0.02  # relative difference of the aspect ratios of an image and its mask


def find_masks(folder: Path) -> dict[tuple[str, str], Path]:
    """Index the masks below a folder by (name of their folder, stem of the image): `<image>_mask.*` or `<image>.*`.

    If both exist, `<image>_mask.*` is the mask.

    Raises:
        InputError: there is no mask, or two for one image.
    """
    files = [file for file in _walk(folder) if file.suffix.lower() in IMAGE_SUFFIXES]
    if not files:
        raise InputError(f"{folder}: no mask in it" if folder.is_dir() else f"no such folder: {folder}")
    masks: dict[tuple[str, str], Path] = {}
    for file in sorted(files, key=lambda file: file.stem.endswith(MASK_SUFFIX)):
        key = (file.parent.name, file.stem.removesuffix(MASK_SUFFIX))
        other = masks.get(key)
        if other is not None and other.stem == file.stem:
            raise InputError(f"{other} and {file}: which is the mask? The same folder and name occur twice")
        masks[key] = file
    return masks


def _walk(folder: Path) -> Iterator[Path]:
    for directory, _, names in os.walk(folder):
        yield from (Path(directory, name) for name in sorted(names))


def mask_of(path: Path, files: dict[tuple[str, str], Path]) -> Path | None:
    """Find the mask of an image by folder and name, or by name alone if all masks lie in one folder of another name."""
    kinds = {kind for kind, _ in files}
    if path.parent.name in kinds or len(kinds) > 1:
        return files.get((path.parent.name, path.stem))
    return files.get((next(iter(kinds)), path.stem))


def read_mask(file: Path | None, image_height: int, image_width: int) -> Mask:
    """Read a mask as boolean (H, W), true where the image is anomalous; all false at the image's size without a file.

    Grey levels from 128 count as anomalous; in a mask of zeros and ones, 1 does.

    Raises:
        InputError: it cannot be read, or its aspect ratio differs from the image's.
    """
    if file is None:
        return np.zeros((image_height, image_width), bool)
    try:
        with Image.open(file) as mask:
            values = np.asarray(mask.convert("L"))
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"{file}: not a readable mask: {error}") from error
    height, width = values.shape
    if abs(height * image_width / (width * image_height) - 1) > SHAPE_TOLERANCE:
        raise InputError(f"{file} has {width} × {height} pixels, its image {image_width} × {image_height}")
    pixels: Mask = values >= (128 if values.max() > 1 else 1)
    return pixels


def resize_map(anomaly_map: Map, height: int, width: int) -> Map:
    """Resample an (h, w) map to the size of a mask, bilinearly."""
    resized = F.interpolate(torch.from_numpy(anomaly_map)[None, None], (height, width), mode="bilinear")
    result: Map = resized[0, 0].numpy()
    return result
