"""The border of a region of interest in a picture; writes no file."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from anomaly_cli.images.roi import resize_mask

Pixels = NDArray[np.uint8]

DASH = 6  # line widths, of each dash and each gap
DARK, BRIGHT = (0, 0, 0), (120, 220, 255)


def draw_region(
    image: Pixels, anomaly_map: NDArray[np.float32], inspected: NDArray[np.bool_] | None
) -> tuple[Pixels, NDArray[np.float32]]:
    """Prepare image and map for an overlay: with the border, and calm up to it where smoothing would cross it.

    Args:
        image: (H, W, 3) RGB.
        anomaly_map: (h, w).
        inspected: (h', w') pixels in the region of interest; None leaves both as they are.

    Returns:
        The image, and the map at its size.
    """
    if inspected is None:
        return image, anomaly_map
    H, W, _ = image.shape
    heat = np.array(Image.fromarray(anomaly_map).resize((W, H), Image.Resampling.BILINEAR))
    heat[~resize_mask(inspected, H, W)] = 0
    return draw_border(image, inspected), heat


def draw_border(image: Pixels, inspected: NDArray[np.bool_]) -> Pixels:
    """Draw a thin dashed line around the region of interest, dark and bright in turn: visible on any background.

    Args:
        image: (H, W, 3) RGB.
        inspected: (h, w), of any resolution; resized to the image.

    Returns:
        (H, W, 3), a copy.
    """
    H, W, _ = image.shape
    inside = resize_mask(inspected, H, W)
    width = max(1, round(min(H, W) / 300))
    line = inside & ~ndimage.binary_erosion(inside, np.ones((3, 3)), iterations=width, border_value=1)
    y, x = np.ogrid[:H, :W]
    dash = ((y + x) // (DASH * width)) % 2 == 0
    drawn = image.copy()
    drawn[line & dash] = BRIGHT
    drawn[line & ~dash] = DARK
    return drawn
