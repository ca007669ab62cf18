"""Ground-truth masks of anomalies: found beside a table, read, brought to the size of a map."""

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
SHAPE_TOLERANCE = 0.02  # of height over width, between an image and its mask


def find_masks(folder: Path) -> dict[tuple[str, str], Path]:
    """List the masks below a folder by the names of their own folder and of the image: `<image>_mask.*` or `<image>.*`.

    Where both are there, the first is the mask and the other perhaps the image.

    Raises:
        InputError: there is none, or two for one image.
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
    """Find the mask in a folder of the image's own folder's name; where masks lie in no such folders, by name alone."""
    kinds = {kind for kind, _ in files}
    if path.parent.name in kinds or len(kinds) > 1:
        return files.get((path.parent.name, path.stem))
    return files.get((next(iter(kinds)), path.stem))


def read_mask(file: Path | None, image_height: int, image_width: int) -> Mask:
    """Read a mask, (H, W), white where the image is anomalous; all black at the image's size where there is no file.

    A mask of zeros and ones is read, too.

    Raises:
        InputError: it cannot be read, or has another shape than the image.
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
