"""Small pictures for the review page: a thumbnail of an image, and its anomaly map in bytes; writes no file."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from anomaly_cli.images.decode import load_image
from anomaly_cli.review.overlay import FULL_SCALE

THUMBNAIL_SIDE = 320  # pixels of the longer side; a multiple of the step of `load_image`
THUMBNAIL_QUALITY = 72  # of WebP
MAX_HEAT_SIDE = 64  # cells; a larger map says no more on so small a picture
TINTED_FROM = 0.5  # of the limit of normal: an overlay leaves the image below it as it is
LEVELS = 255


@dataclass(frozen=True)
class Heat:
    """An anomaly map as the page stores it.

    Attributes:
        levels: height * width bytes, row by row; 255 is `FULL_SCALE` times the limit of normal, or more.
        height: cells.
        width: likewise.
    """

    levels: bytes
    height: int
    width: int


def make_thumbnail(path: Path) -> bytes:
    """Draw an image small, its aspect kept, as WebP.

    Raises:
        UnreadableImageError: with the reason in a few words.
    """
    loaded = load_image(path, THUMBNAIL_SIDE)
    reduce = THUMBNAIL_SIDE / max(loaded.width, loaded.height, THUMBNAIL_SIDE)
    size = max(1, round(loaded.width * reduce)), max(1, round(loaded.height * reduce))
    picture = Image.fromarray(loaded.pixels).resize(size, Image.Resampling.BICUBIC)
    stream = io.BytesIO()
    picture.save(stream, "WEBP", quality=THUMBNAIL_QUALITY, method=4)
    return stream.getvalue()


def make_heat(anomaly_map: NDArray[np.floating[Any]]) -> Heat | None:
    """Store an anomaly map in units of the limit of normal, (h, w); None where an overlay would show nothing."""
    if anomaly_map.max() <= TINTED_FROM:
        return None
    h, w = anomaly_map.shape
    reduce = -(-max(h, w) // MAX_HEAT_SIDE)
    cells = Image.fromarray(anomaly_map.astype(np.float32)).reduce(reduce)
    levels = np.rint(np.clip(np.asarray(cells) / FULL_SCALE, 0, 1) * LEVELS).astype(np.uint8)
    return Heat(levels.tobytes(), cells.height, cells.width)
