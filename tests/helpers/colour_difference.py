"""How different two colours look: CIEDE2000, after Sharma, Wu and Dalal (2005), with their notation."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

SRGB_TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
D65 = np.array([0.95047, 1.0, 1.08883])
HALF_CHROMA = 25.0**7


def lab_of(pixels: NDArray[np.uint8]) -> Floats:
    """Convert (..., 3) sRGB to CIELAB under D65."""
    encoded = pixels / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    relative = linear @ SRGB_TO_XYZ.T / D65
    f = np.where(relative > (6 / 29) ** 3, np.cbrt(relative), relative / (3 * (6 / 29) ** 2) + 4 / 29)
    lab: Floats = np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], -1)
    return lab


def ciede2000(first: Floats, second: Floats) -> Floats:
    """Compare (..., 3) CIELAB colours: about 1 is just visible, 100 is black against white."""
    (L1, a1, b1), (L2, a2, b2) = np.moveaxis(first, -1, 0), np.moveaxis(second, -1, 0)
    C_bar = (np.hypot(a1, b1) + np.hypot(a2, b2)) / 2
    G = 0.5 * (1 - np.sqrt(C_bar**7 / (C_bar**7 + HALF_CHROMA)))
    a1, a2 = (1 + G) * a1, (1 + G) * a2
    C1, C2 = np.hypot(a1, b1), np.hypot(a2, b2)
    h1, h2 = (np.degrees(np.arctan2(b, a)) % 360 for a, b in ((a1, b1), (a2, b2)))
    grey = C1 * C2 == 0
    dh = np.where(grey, 0, (h2 - h1 + 180) % 360 - 180)
    dh = np.where((dh == -180) & (h2 > h1), 180, dh)
    dH = 2 * np.sqrt(C1 * C2) * np.sin(np.radians(dh / 2))
    L, C, apart = (L1 + L2) / 2, (C1 + C2) / 2, np.abs(h1 - h2) > 180
    h = np.where(grey, h1 + h2, (h1 + h2 + np.where(apart, np.where(h1 + h2 < 360, 360, -360), 0)) / 2)
    T = sum(
        weight * np.cos(np.radians(times * h + shift))
        for weight, times, shift in ((1, 0, 0), (-0.17, 1, -30), (0.24, 2, 0), (0.32, 3, 6), (-0.20, 4, -63))
    )
    R_C = 2 * np.sqrt(C**7 / (C**7 + HALF_CHROMA))
    R_T = -R_C * np.sin(np.radians(60 * np.exp(-(((h - 275) / 25) ** 2))))
    l_part = (L2 - L1) / (1 + 0.015 * (L - 50) ** 2 / np.sqrt(20 + (L - 50) ** 2))
    c_part, h_part = (C2 - C1) / (1 + 0.045 * C), dH / (1 + 0.015 * C * T)
    difference: Floats = np.sqrt(l_part**2 + c_part**2 + h_part**2 + R_T * c_part * h_part)
    return difference
