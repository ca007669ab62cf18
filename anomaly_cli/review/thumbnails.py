"""Thumbnails of images and quantised anomaly maps for the review page; writes no file."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from anomaly_cli.images.decode import load_image
from anomaly_cli.review.overlay import FULL_SCALE, LIMIT
from anomaly_cli.review.roi_border import draw_border

THUMBNAIL_SIDE = 320  # pixels of the longer side; a multiple of the step of `load_image`
THUMBNAIL_QUALITY = 72  # of WebP
MAX_HEAT_SIDE = 64  # cells; a finer map adds nothing at this size
TINTED_FROM = 0.5  # of the limit of normal: below, an overlay leaves the image unchanged
LEVELS = 255
LIMIT_LEVEL = round(LEVELS * LIMIT / FULL_SCALE)


@dataclass(frozen=True)
class Heat:
    """A quantised anomaly map.

    Attributes:
        levels: height * width bytes, row-major; 255 is `FULL_SCALE` times the limit of normal, or more.
        height: in cells.
        width: in cells.
    """

    levels: bytes
    height: int
    width: int


def make_thumbnail(path: Path, window: tuple[float, float] | None = None) -> bytes:
    """Reduce an image to `THUMBNAIL_SIDE`, aspect ratio kept, as WebP.

    Raises:
        UnreadableImageError: with the reason in a few words.
    """
    loaded = load_image(path, THUMBNAIL_SIDE, window=window)
    reduce = THUMBNAIL_SIDE / max(loaded.width, loaded.height, THUMBNAIL_SIDE)
    size = max(1, round(loaded.width * reduce)), max(1, round(loaded.height * reduce))
    return _encoded(Image.fromarray(loaded.pixels).resize(size, Image.Resampling.BICUBIC))


def with_border(thumbnail: bytes, inspected: NDArray[np.bool_]) -> bytes:
    """Draw the border of an (h, w) region of interest into a thumbnail."""
    with Image.open(io.BytesIO(thumbnail)) as picture:
        return _encoded(Image.fromarray(draw_border(np.asarray(picture.convert("RGB")), inspected)))


def _encoded(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "WEBP", quality=THUMBNAIL_QUALITY, method=4)
    return stream.getvalue()


def make_heat(anomaly_map: NDArray[np.floating[Any]]) -> Heat | None:
    """Quantise an (h, w) anomaly map, 1.0 = the limit of normal; None if an overlay would show nothing."""
    if anomaly_map.max() <= TINTED_FROM:
        return None
    h, w = anomaly_map.shape
    reduce = -(-max(h, w) // MAX_HEAT_SIDE)
    padded = np.pad(anomaly_map, ((0, -h % reduce), (0, -w % reduce)))
    # The largest and not the mean: one hot cell of a large map must stay visible.
    cells = padded.reshape(len(padded) // reduce, reduce, -1, reduce).max(axis=(1, 3))
    levels = np.rint(np.clip(cells / FULL_SCALE, 0, 1) * LEVELS).astype(np.uint8)
    # Rounding may not take a cell out of a region, or into one.
    inside = cells >= LIMIT
    levels = np.where(inside, np.maximum(levels, LIMIT_LEVEL), np.minimum(levels, LIMIT_LEVEL - 1)).astype(np.uint8)
    return Heat(levels.tobytes(), *levels.shape)
