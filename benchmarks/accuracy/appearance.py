"""Changes of appearance, as style anomalies: the content stays, illumination, focus, colour or compression change.

Every change takes an (H, W, 3) uint8 RGB picture of about 256 × 256 pixels and a random generator, which draws its
strength. Strengths are those of a careless photographer, not of a broken file: the ranges stand beside each change.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float64]
Change = Callable[[Pixels, np.random.Generator], Pixels]

SCREEN_ANGLES = (15.0, 75.0, 0.0)  # degrees, of the cyan, magenta and yellow screen, as printers turn them
PRINT_SCALE = 3  # the print is made of so many dots a side of a pixel
PAPER = (0.96, 0.95, 0.91)  # reflectance of the paper in red, green and blue
INK = 0.10  # reflectance of full ink


def _clipped(values: Floats) -> Pixels:
    """Round values in [0, 255] to a picture."""
    pixels: Pixels = np.rint(values).clip(0, 255).astype(np.uint8)
    return pixels


def illumination(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Light from one side: brightness changes by ± 10 to 35 % across the picture, exposure by 5 to 20 %."""
    H, W, _ = pixels.shape
    y, x = np.mgrid[:H, :W]
    angle = rng.uniform(0, 2 * np.pi)
    along = np.cos(angle) * (2 * x / max(W - 1, 1) - 1) + np.sin(angle) * (2 * y / max(H - 1, 1) - 1)
    exposure = 1 + rng.choice([-1, 1]) * rng.uniform(0.05, 0.2)
    gain = exposure * (1 + rng.uniform(0.1, 0.35) * along / np.abs(along).max())
    return _clipped(pixels * gain[..., None])


def blur(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Out of focus: a Gaussian of 0.6 to 1.5 pixels."""
    blurred = Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(rng.uniform(0.6, 1.5)))
    return np.array(blurred)


def compression(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Save as JPEG of quality 15 to 40, colours at half resolution."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=int(rng.integers(15, 41)), subsampling=2)
    with Image.open(buffer) as image:
        return np.array(image.convert("RGB"))


def colour_cast(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Wrong white balance: red up and blue down by 5 to 20 %, or the reverse, green by at most 5 %."""
    shift = rng.choice([-1, 1]) * rng.uniform(0.05, 0.2)
    return _clipped(pixels * np.array([1 + shift, 1 + rng.uniform(-0.05, 0.05), 1 - shift]))


def other_camera(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Another tone curve (gamma 0.75 to 0.9 or 1.1 to 1.35), noise of 2 to 6 levels, corners 10 to 35 % darker."""
    H, W, _ = pixels.shape
    gamma = rng.uniform(0.75, 0.9) if rng.random() < 0.5 else rng.uniform(1.1, 1.35)
    y, x = np.mgrid[:H, :W]
    radius = np.hypot(2 * y / max(H - 1, 1) - 1, 2 * x / max(W - 1, 1) - 1) / np.sqrt(2)
    vignette = 1 - rng.uniform(0.1, 0.35) * radius**2
    toned = 255 * (pixels / 255) ** gamma * vignette[..., None]
    return _clipped(toned + rng.normal(0, rng.uniform(2, 6), pixels.shape))


def rephotographed(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Printed and photographed: halftone dots of 2 to 3 pixels, paper tint and grain, corners moved by up to 3 %."""
    H, W, _ = pixels.shape
    large = Image.fromarray(pixels).resize((W * PRINT_SCALE, H * PRINT_SCALE), Image.Resampling.BICUBIC)
    printed = halftone(np.asarray(large) / 255, PRINT_SCALE * rng.uniform(2, 3))
    paper = np.array(PAPER) + rng.normal(0, 0.02, (H * PRINT_SCALE, W * PRINT_SCALE, 1))
    sheet = _clipped(255 * paper * (INK + (1 - INK) * printed))
    photo = _tilted(Image.fromarray(sheet), 0.03, rng).filter(ImageFilter.GaussianBlur(0.5 * PRINT_SCALE))
    return np.array(photo.resize((W, H), Image.Resampling.BOX))


def halftone(reflectance: Floats, period: float) -> Floats:
    """Print with dots: (H, W, 3) reflectance in [0, 1] becomes 0 or 1 in each colour, its mean about kept.

    Args:
        reflectance: of what is printed.
        period: pixels from dot to dot.
    """
    H, W, _ = reflectance.shape
    y, x = np.mgrid[:H, :W] * (2 * np.pi / period)
    printed = np.empty(reflectance.shape)
    for channel, angle in enumerate(np.deg2rad(SCREEN_ANGLES)):
        u, v = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
        screen = np.cos(u) + np.cos(v)  # in [-2, 2]; its rank among all places is the threshold, so that means are kept
        threshold = np.searchsorted(np.sort(screen, axis=None), screen) / screen.size
        printed[..., channel] = reflectance[..., channel] > threshold
    return printed


def _tilted(picture: Image.Image, reach: float, rng: np.random.Generator) -> Image.Image:
    """Look at a sheet from nearly above: its corners move inwards by up to `reach` of a side; no border shows."""
    W, H = picture.size
    inwards = rng.uniform(0, reach, (4, 2)) * (W, H)
    (x0, y0), (x1, y1), (x2, y2), (x3, y3) = inwards
    corners = (x0, y0, x1, H - y1, W - x2, H - y2, W - x3, y3)  # upper left, lower left, lower right, upper right
    return picture.transform((W, H), Image.Transform.QUAD, corners, Image.Resampling.BILINEAR)


CHANGES: dict[str, Change] = {
    "illumination": illumination,
    "blur": blur,
    "compression": compression,
    "colour cast": colour_cast,
    "rephotographed": rephotographed,
    "other camera": other_camera,
}
