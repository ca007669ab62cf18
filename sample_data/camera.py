"""From linear light to an 8-bit picture: optics, exposure, sensor noise and tone curve."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from parts import OVERSAMPLING
from scipy import ndimage
from textures import Array


@dataclass(frozen=True, kw_only=True)
class Camera:
    """Settings of one shot."""

    exposure: float = 1.0
    gains: tuple[float, float, float] = (1.0, 1.0, 1.0)  # white balance, red green blue
    blur_px: float = 0.6  # deviation of the lens blur, in picture pixels
    smear_px: float = 0.0  # length of the motion blur, in picture pixels
    smear_angle: float = 0.0  # radians
    glow: float = 0.015  # share of the light that strays in the lens
    vignette: float = 0.22  # loss of light in the corners of a 256 pixel square
    noise: float = 0.011  # deviation of the sensor noise at half brightness

    @classmethod
    def varied(cls, rng: np.random.Generator) -> "Camera":
        """The station's camera, with the small changes between shots."""
        warm, tint = rng.normal(0, 0.018), rng.normal(0, 0.008)
        return cls(
            exposure=float(np.exp(rng.normal(0, 0.06))),
            gains=(1 + warm, 1 + tint, 1 - warm),
            blur_px=rng.uniform(0.45, 0.8),
            vignette=rng.uniform(0.17, 0.27),
            noise=rng.uniform(0.008, 0.014),
        )


def _smeared(light: Array, camera: Camera) -> Array:
    half = camera.smear_px * OVERSAMPLING / 2
    steps = np.linspace(-half, half, max(int(2 * half), 2))
    move_y, move_x = math.sin(camera.smear_angle), math.cos(camera.smear_angle)
    moved = [ndimage.shift(light, (s * move_y, s * move_x, 0), order=1, mode="nearest") for s in steps]
    result: Array = np.mean(moved, axis=0)
    return result


def _through_lens(light: Array, camera: Camera) -> Array:
    if camera.smear_px:
        light = _smeared(light, camera)
    sigma = camera.blur_px * OVERSAMPLING
    sharp = ndimage.gaussian_filter(light, (sigma, sigma, 0))
    stray = ndimage.gaussian_filter(np.minimum(light, 3.0), (16 * OVERSAMPLING, 16 * OVERSAMPLING, 0))
    mixed = (1 - camera.glow) * sharp + camera.glow * stray
    H, W, _ = mixed.shape
    blocks = mixed.reshape(H // OVERSAMPLING, OVERSAMPLING, W // OVERSAMPLING, OVERSAMPLING, 3)
    result: Array = blocks.mean(axis=(1, 3))  # (H / 2, W / 2, 3)
    return result


def _falloff(height: int, width: int, camera: Camera) -> Array:
    y, x = np.mgrid[:height, :width]
    from_axis = np.hypot(y - height / 2, x - width / 2) / math.hypot(128, 128)
    result: Array = 1 - camera.vignette * from_axis**2
    return result


def _sensor_noise(rng: np.random.Generator, light: Array, camera: Camera) -> Array:
    """Noise that grows with the square root of the light and is softened, as demosaicking does."""
    raw = rng.normal(size=light.shape)
    soft = ndimage.gaussian_filter(raw, (0.55, 0.55, 0)) * 1.6
    grey = soft.mean(axis=2, keepdims=True) * 1.2
    result: Array = camera.noise * (0.6 * soft + 0.6 * grey) * np.sqrt(0.04 + np.clip(light, 0, 1.2))
    return result


def develop(light: Array, camera: Camera, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Take the picture.

    Args:
        light: (H, W, 3) linear light on the oversampled grid.
        camera: settings of the shot.
        rng: source of the sensor noise.

    Returns:
        uint8 RGB picture at its final size, in [0, 255].
    """
    seen = _through_lens(light, camera)
    seen *= _falloff(seen.shape[0], seen.shape[1], camera)[..., None]
    seen *= camera.exposure * np.array(camera.gains)
    seen += _sensor_noise(rng, seen, camera)
    toned = (1 - np.exp(-1.55 * np.maximum(seen, 0))) ** (1 / 1.9)
    return np.round(255 * np.clip(1.03 * toned, 0, 1)).astype(np.uint8)
