"""Pictures for the tests of decoding, and how they are saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]


def noise(height: int = 40, width: int = 60) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def smooth(height: int, width: int) -> Pixels:
    small = Image.fromarray(noise(5, 7))
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


def saved(path: Path, image: Image.Image | NDArray[Any], **options: Any) -> Path:
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path, **options)
    return path
