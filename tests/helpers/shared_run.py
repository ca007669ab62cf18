"""What tests share: the settings of a small model, and folders of synthetic images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from typer.testing import Result

from anomaly_cli.config import DetectorConfig, Effort

SIDE = 64  # pixels, of most images
NORMALS = 12
SETTINGS = ("--image-size", "64", "--prototypes", "50", "--effort", "quick")
CONFIG = DetectorConfig(image_size=64, prototypes=50, effort=Effort.QUICK)


@dataclass(frozen=True)
class Trained:
    """What all tests share.

    Attributes:
        folder: holds `normal`, `incoming` and the model file.
        model: the model file, trained by the command line on `normal`, as seen from `folder`.
        result: what that command printed.
    """

    folder: Path
    model: Path
    result: Result


def texture(rng: np.random.Generator, height: int, width: int) -> NDArray[np.uint8]:
    """Make a normal image: soft waves and some noise."""
    y, x = np.mgrid[:height, :width]
    waves = 128 + 30 * np.sin(y / 3) + 30 * np.cos(x / 4)
    noisy = waves[..., None] + rng.normal(0, 8, (height, width, 3))
    pixels: NDArray[np.uint8] = np.clip(noisy, 0, 255).astype(np.uint8)
    return pixels


def with_defect(rng: np.random.Generator, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Replace a patch of an image by coloured noise."""
    top, left = rng.integers(8, 40, 2)
    changed = pixels.copy()
    changed[top : top + 16, left : left + 16] = rng.integers(0, 256, (16, 16, 3))
    return changed


def make_images(folder: Path) -> None:
    """Fill `normal` (12 images, 2 files that are none) and `incoming` (6 normal images, 3 anomalous ones)."""
    rng = np.random.default_rng(0)
    normal, incoming, deep = folder / "normal", folder / "incoming", folder / "incoming" / "deep"
    normal.mkdir()
    deep.mkdir(parents=True)
    for i in range(NORMALS):
        Image.fromarray(texture(rng, SIDE, SIDE)).save(normal / f"{i:02}.{'png' if i % 2 else 'jpg'}", quality=95)
    (normal / "empty.png").touch()
    (normal / "words.jpg").write_bytes(b"no picture at all, only words")
    for i in range(5):
        Image.fromarray(texture(rng, SIDE, SIDE)).save(incoming / f"good{i}.png")
    for i in range(3):
        Image.fromarray(with_defect(rng, texture(rng, SIDE, SIDE))).save(incoming / f"bad{i}.jpg", quality=95)
    Image.fromarray(texture(rng, SIDE, SIDE)).save(deep / "good one.png")
