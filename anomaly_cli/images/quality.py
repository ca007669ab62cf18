"""Plain facts about an image that tell odd from broken: light, contrast, sharpness, and which others are copies of it.

Knows pixels and hashes only: reading files is the business of `images`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

WHITE = 255.0  # gray level of a luma of 1
FLAT = 1 / WHITE  # contrast of a blank picture: one gray level; the signs in its spectrum are rounding errors
HASH_SIDE = 24  # frequencies a direction
HASH_BYTES = HASH_SIDE**2 // 8


@dataclass(frozen=True, slots=True)
class Quality:
    """What can be said of one image without knowing what is normal.

    Light is measured on the luma (ITU-R 601) of the pixels at network size, in [0, 1].

    Attributes:
        aspect: width / height of the original.
        brightness: mean luma.
        contrast: standard deviation of the luma.
        sharpness: variance of the Laplacian (4 neighbours) of the luma, in gray levels (0 to 255) squared. It is taken
            at network size, so detail beyond that does not count and a small picture, enlarged, is never sharp:
            compare files of similar size.
        content_hash: SHA-256 of the file's bytes in hexadecimal, as `sha256sum` prints it.
        perceptual_hash: `HASH_BYTES` in hexadecimal; near-copies differ in at most `MAX_HASH_BITS` bits.
    """

    aspect: float
    brightness: float
    contrast: float
    sharpness: float
    content_hash: str
    perceptual_hash: str


def measure_quality(pixels: NDArray[np.uint8], height: int, width: int, content_hash: str) -> Quality:
    """Measure one image.

    Args:
        pixels: (h, w, 3) uint8 RGB at network size, at least 3 × 3.
        height: of the original, pixels.
        width: likewise.
        content_hash: of its file.
    """
    picture = Image.fromarray(pixels).convert("L")
    luma = np.asarray(picture, np.float32)  # (h, w), gray levels
    contrast = float(luma.std(dtype=np.float64)) / WHITE
    return Quality(
        aspect=width / height,
        brightness=float(luma.mean(dtype=np.float64)) / WHITE,
        contrast=contrast,
        sharpness=_variance_of_laplacian(luma),
        content_hash=content_hash,
        perceptual_hash=(bytes(HASH_BYTES) if contrast < FLAT else _perceptual_hash(picture)).hex(),
    )


def _variance_of_laplacian(luma: NDArray[np.float32]) -> float:
    centre = luma[1:-1, 1:-1]
    laplacian = luma[:-2, 1:-1] + luma[2:, 1:-1] + luma[1:-1, :-2] + luma[1:-1, 2:] - 4 * centre
    return float(laplacian.var(dtype=np.float64))


def _perceptual_hash(picture: Image.Image) -> bytes:
    """DCT hash: which of its lowest `HASH_SIDE`² frequencies are stronger than their median."""
    from imagehash import phash  # brings parts of scipy that `--help` and training without files do without

    return np.packbits(phash(picture, hash_size=HASH_SIDE).hash).tobytes()
