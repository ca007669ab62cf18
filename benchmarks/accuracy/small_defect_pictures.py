"""Draw large pictures with small defects: a rolled surface, and trays of the washers of sample_data; seeded."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

Pixels = NDArray[np.uint8]

SAMPLE_DATA = Path(__file__).parents[2] / "sample_data"
WASHER_SIDE = 250  # pixels of a washer on the tray
WASHERS = 32  # rendered once and laid out anew on every tray
DEPTH = (0.3, 0.5)  # of a defect: share of the way to black or white


def surface(side: int, rng: np.random.Generator) -> Pixels:
    """Draw a rolled, slightly uneven surface: (side, side, 3)."""
    waves = ndimage.zoom(rng.normal(size=(9, 9)), (side + 8) / 9, order=3)[:side, :side]
    streaks = ndimage.gaussian_filter(rng.normal(size=(side, side)).astype(np.float32), (1, 12))
    grain = ndimage.gaussian_filter(rng.normal(size=(side, side)).astype(np.float32), 1.2)
    grey = 128 + 6 * waves + 9 * streaks / streaks.std() + 9 * grain / grain.std()
    tint = np.array([1.02, 1.0, 0.96]) * rng.uniform(0.97, 1.03)
    return _to_pixels(grey[..., None] * tint)


def tray(side: int, rng: np.random.Generator) -> Pixels:
    """Lay washers out in rows and columns, each turned at random: (side, side, 3)."""
    places = -(-side // WASHER_SIDE)
    picture = np.empty((places * WASHER_SIDE, places * WASHER_SIDE, 3), np.uint8)
    for row in range(places):
        for column in range(places):
            washer = np.rot90(_washers()[int(rng.integers(WASHERS))], int(rng.integers(4)))
            y, x = row * WASHER_SIDE, column * WASHER_SIDE
            picture[y : y + WASHER_SIDE, x : x + WASHER_SIDE] = washer[::-1] if rng.random() < 0.5 else washer
    noise = rng.normal(0, 2, (side, side, 1)).astype(np.float32)
    return _to_pixels(picture[:side, :side] * rng.uniform(0.97, 1.03) + noise)


@cache
def _washers() -> list[Pixels]:
    """Render normal washers as sample_data does."""
    sys.path.insert(0, str(SAMPLE_DATA))
    try:
        from generate import SQUARE, photograph
    finally:
        sys.path.remove(str(SAMPLE_DATA))
    cut = (256 - WASHER_SIDE) // 2
    pictures = (photograph("normal", SQUARE, np.random.default_rng([9, i])).pixels for i in range(WASHERS))
    return [each[cut : cut + WASHER_SIDE, cut : cut + WASHER_SIDE] for each in pictures]


def add_defect(pixels: Pixels, size: int, rng: np.random.Generator) -> Pixels:
    """Draw one nick, dark on bright ground or bright on dark, of `size` pixels in length, anywhere: a copy."""
    h, w = pixels.shape[:2]
    y, x = np.mgrid[-size : size + 1, -size : size + 1]
    angle, width = rng.uniform(0, np.pi), size * rng.uniform(0.5, 1)
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    distance = np.hypot(along / (size / 2), across / (width / 2))
    opacity = np.clip((1 - distance) * size / 2 + 0.5, 0, 1)[..., None] * rng.uniform(*DEPTH)
    top, left = int(rng.integers(size, h - 2 * size)), int(rng.integers(size, w - 2 * size))
    place = np.s_[top : top + 2 * size + 1, left : left + 2 * size + 1]
    changed = pixels.copy()
    towards = 0 if pixels[place].mean() >= 128 else 255
    changed[place] = _to_pixels(pixels[place] * (1 - opacity) + towards * opacity)
    return changed


def _to_pixels(values: NDArray[np.floating]) -> Pixels:
    pixels: Pixels = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return pixels


PICTURES = {"surface": surface, "washers": tray}


def write_pictures(folder: Path, kind: str, count: int, side: int, seed: int, size: int = 0) -> list[Path]:
    """Write pictures as JPEG; `size` is that of their defect in pixels, 0 for none."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{i:03}.jpg" for i in range(count)]
    for i, path in enumerate(paths):
        rng = np.random.default_rng([seed, i])
        pixels = PICTURES[kind](side, rng)
        Image.fromarray(add_defect(pixels, size, rng) if size else pixels).save(path, quality=95)
    return paths
