"""Bring decoded pictures of any mode to 8 bit, without alpha."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from anomaly_cli.images.pillow_faults import settled

GRAY_OF_16_BIT = ((np.arange(65536) + 128) // 257).astype(np.uint8)  # 65535 -> 255, rounded


def flattened(image: Image.Image, window: tuple[float, float] | None = None) -> Image.Image:
    """Bring any mode to 8 bit without alpha: RGB, or L for gray, which resizes three times faster.

    Args:
        image: decoded.
        window: values of deep gray that become black and white; without it `read_pixels` says which do.
    """
    image = settled(image)
    if image.mode == "F" or (window and image.mode.startswith("I")):
        return Image.fromarray(_gray_of_floats(image, window))
    if image.mode.startswith("I"):
        return Image.fromarray(_gray_of_integers(image))
    if image.has_transparency_data:
        # Pillow turns a premultiplied gray only into a plain one.
        rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        canvas = Image.new("RGB", image.size, "white")
        canvas.paste(rgba, mask=rgba)
        return canvas
    if image.mode in ("L", "RGB"):
        return image
    return image.convert("L" if image.mode == "1" else "RGB")


def _gray_of_integers(image: Image.Image) -> NDArray[np.uint8]:
    values = np.asarray(image)  # (H, W), 16-bit unsigned or 32-bit signed
    white = image.info.get("white", 65535)
    table = GRAY_OF_16_BIT if white == 65535 else ((np.arange(white + 1) * 255 + white // 2) // white).astype(np.uint8)
    gray: NDArray[np.uint8] = table[values if values.dtype.itemsize == 2 and white == 65535 else values.clip(0, white)]
    if image.info.get("negative"):
        gray = 255 - gray
    return _without_transparent(gray, values, image)


def _without_transparent(gray: NDArray[np.uint8], values: NDArray[Any], image: Image.Image) -> NDArray[np.uint8]:
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        gray[values == transparent] = 255
    return gray


def _gray_of_floats(image: Image.Image, window: tuple[float, float] | None) -> NDArray[np.uint8]:
    """Turn floats, or with a window any numbers, into (H, W) gray; not-a-number becomes black, infinity an end."""
    values = np.asarray(image)
    low, high = window or ((0.0, float(image.info["white"])) if "white" in image.info else float_range(values))
    fractions = fractions_between(values, low, high)
    if image.info.get("negative"):
        fractions = 1 - fractions
    gray: NDArray[np.uint8] = (np.nan_to_num(fractions) * 255).round().astype(np.uint8)
    return _without_transparent(gray, values, image)


def fractions_between(values: NDArray[Any], black: float, white: float) -> NDArray[np.float64]:
    """Scale values of any shape to [0, 1] between black and white; not-a-number stays one."""
    with np.errstate(invalid="ignore"):
        scaled: NDArray[np.float64] = (values.astype(np.float64) - black) / max(white - black, 1e-300)
    return scaled.clip(0, 1)


def float_range(values: NDArray[np.floating[Any]]) -> tuple[float, float]:
    """Choose what is black and white in floats: 0 and 1, or 0 and 255, where all lie within; else their extremes."""
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    if low >= 0 and high <= 255:
        return 0.0, 1.0 if high <= 1 else 255.0
    return low, high
