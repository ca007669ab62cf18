"""Random views and synthetic defects of normal images, for stages 1 and 2."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from anomaly_cli.images.decode import LoadedImage
from anomaly_cli.images.roi import resize_mask

Pixels = NDArray[np.uint8]

Mask = NDArray[np.bool_]

VIEW_AREA = (0.35, 1.0)  # share of an image that a view shows
VIEW_ASPECT = 4 / 3  # of that part, at most, upright or not
VIEW_LIGHT = 0.4  # by which its brightness, contrast and saturation change at most
TINTS = (0.9, 1.1)  # by which each of its colours is multiplied
GRAY_VIEWS = 0.2  # share of the views that have no colour
OPACITY = (0.25, 0.8)  # of a synthetic defect
EDGE = 1.0  # pixels at network size


def random_view(pixels: Pixels, side: int, generator: np.random.Generator) -> Pixels:
    """Cut out a part of an image, resize it, mirror it and light it differently: another picture of the same thing.

    The views of contrastive learning (Chen et al. 2020) without blur, and with larger parts.

    Args:
        pixels: (h, w, 3) uint8.
        side: of the square view, in pixels.
        generator: source of every random number.

    Returns:
        (side, side, 3) uint8.
    """
    h, w = pixels.shape[:2]
    stretch = VIEW_ASPECT ** generator.uniform(-0.5, 0.5)
    width, height = np.array([stretch, 1 / stretch]) * np.sqrt(h * w * generator.uniform(*VIEW_AREA))
    fitting = min(1.0, w / width, h / height)
    width, height = fitting * width, fitting * height
    left, top = generator.random(2) * np.maximum(0, (w - width, h - height))
    part = Image.fromarray(pixels).resize(
        (side, side), Image.Resampling.BILINEAR, (left, top, min(left + width, w), min(top + height, h))
    )
    values = np.asarray(part, np.float32)
    if generator.random() < 0.5:
        values = values[:, ::-1]
    brightness, contrast, saturation = generator.uniform(1 - VIEW_LIGHT, 1 + VIEW_LIGHT, 3)
    if generator.random() < GRAY_VIEWS:
        saturation = 0.0
    gray = values.mean(axis=2, keepdims=True)
    colours = gray + saturation * (values - gray)
    centre = colours.mean()
    return _to_pixels(brightness * (centre + contrast * (colours - centre)) * generator.uniform(*TINTS, 3))


def synthetic_defect_of(image: LoadedImage, other: Pixels, generator: np.random.Generator) -> Pixels:
    """Paste a synthetic defect into an image at network size, no sharper than the pixels of its file.

    In a file that was enlarged, a defect drawn at network size would be sharper than anything that a file can show,
    and easily seen.

    Args:
        image: with the size of its file.
        other: (h2, w2, 3) uint8 part of another normal image, at network size.
        generator: source of every random number.

    Returns:
        (h, w, 3) uint8.
    """
    h, w = image.pixels.shape[:2]
    rows, columns = min(h, image.height), min(w, image.width)
    if (rows, columns) == (h, w):
        return synthetic_defect(image.pixels, other, generator, image.inspected)
    at_file_size = _resized(image.pixels, rows, columns)
    inspected = None if image.inspected is None else resize_mask(image.inspected, rows, columns)
    factor = (rows * columns / (h * w)) ** 0.5
    other = _resized(other, *(max(1, round(side * factor)) for side in other.shape[:2]))
    changed = synthetic_defect(at_file_size, other, generator, inspected, factor * EDGE)
    difference = _resized(changed, h, w).astype(np.float32) - _resized(at_file_size, h, w)
    if image.inspected is not None:
        difference[~image.inspected] = 0
    return _to_pixels(image.pixels + difference)


def _resized(pixels: Pixels, rows: int, columns: int) -> Pixels:
    """Resize (h, w, 3) pixels."""
    return np.asarray(Image.fromarray(pixels).resize((columns, rows), Image.Resampling.BICUBIC))


def synthetic_defect(
    pixels: Pixels,
    other: Pixels,
    generator: np.random.Generator,
    inspected: Mask | None = None,
    edge: float = EDGE,
) -> Pixels:
    """Paste a synthetic near-threshold defect into a normal image.

    A scar or a patch of 0.2 to 8 % of the image is blended with another normal image, a stain, blur or noise. Stronger
    changes show at every scale and cannot rank the scales (docs/method.md).

    Args:
        pixels: (h, w, 3) uint8 normal image.
        other: (h2, w2, 3) uint8, another normal image to cut from.
        generator: source of every random number.
        inspected: (h, w) the region of interest, outside of which nothing changes; None for all of it.
        edge: width of the edge of the defect, the standard deviation of its blur in pixels.

    Returns:
        (h, w, 3) uint8.
    """
    kind = int(generator.integers(len(_CHANGES)))
    mask = _blob(pixels.shape[:2], generator, inspected)
    changed = _CHANGES[kind](pixels.astype(np.float32), other, generator)
    soft = ndimage.gaussian_filter(mask.astype(np.float32), edge)[..., None] * generator.uniform(*OPACITY)
    if inspected is not None:
        soft *= inspected[..., None]
    return _to_pixels(pixels * (1 - soft) + changed * soft)


def synthetic_speck(pixels: Pixels, centre: tuple[int, int], size: float, generator: np.random.Generator) -> Pixels:
    """Draw one small near-threshold defect into a part of a large picture: a speck, a nick, a smear or a rough spot.

    Args:
        pixels: (h, w, 3) uint8.
        centre: row and column.
        size: of its longer side, in pixels.
        generator: source of every random number.

    Returns:
        (h, w, 3) uint8.
    """
    changed = _SMALL_CHANGES[int(generator.integers(len(_SMALL_CHANGES)))](pixels.astype(np.float32), pixels, generator)
    y, x = np.ogrid[: pixels.shape[0], : pixels.shape[1]]
    angle = generator.uniform(0, np.pi)
    along = (x - centre[1]) * np.cos(angle) + (y - centre[0]) * np.sin(angle)
    across = (y - centre[0]) * np.cos(angle) - (x - centre[1]) * np.sin(angle)
    mask = np.hypot(along, across * generator.uniform(1, 4)) < size / 2
    soft = ndimage.gaussian_filter(mask.astype(np.float32), 1.0)[..., None] * generator.uniform(*OPACITY)
    return _to_pixels(pixels * (1 - soft) + changed * soft)


def _to_pixels(values: NDArray[np.floating]) -> Pixels:
    pixels: Pixels = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return pixels


def _blob(size: tuple[int, ...], generator: np.random.Generator, inspected: Mask | None) -> Mask:
    """Mask of an irregular patch or a thin scar of 0.2 to 8 % of the inspected part, in which its centre lies."""
    h, w = size[:2]
    noise = ndimage.gaussian_filter(generator.normal(size=(h, w)), generator.uniform(2, max(h, w) / 16))
    y, x = np.mgrid[:h, :w]
    cy, cx = generator.uniform(0.1, 0.9) * h, generator.uniform(0.1, 0.9) * w
    share = 1.0
    if inspected is not None:
        cy, cx = generator.choice(np.argwhere(inspected)).tolist()
        share = float(inspected.mean())
    angle = generator.uniform(0, np.pi)
    along = (x - cx) * np.cos(angle) + (y - cy) * np.sin(angle)
    across = (y - cy) * np.cos(angle) - (x - cx) * np.sin(angle)
    area = np.exp(generator.uniform(np.log(0.002), np.log(0.08))) * h * w * share
    stretch = np.exp(generator.uniform(0, 2.3))
    radius = np.sqrt(area * stretch / np.pi)
    distance = np.hypot(along / radius, across * stretch / radius)
    blob: Mask = distance + 0.4 * noise / noise.std() < 1
    blob[int(cy), int(cx)] = True
    return blob


def _cut_paste(values: NDArray[np.float32], other: Pixels, generator: np.random.Generator) -> Pixels:
    """Another normal image, rotated and shifted cyclically."""
    rotated = np.rot90(other, int(generator.integers(4)))
    rows = (np.arange(values.shape[0]) + int(generator.integers(rotated.shape[0]))) % rotated.shape[0]
    columns = (np.arange(values.shape[1]) + int(generator.integers(rotated.shape[1]))) % rotated.shape[1]
    shifted: Pixels = rotated[rows][:, columns]
    return shifted


def _stain(values: NDArray[np.float32], _other: Pixels, generator: np.random.Generator) -> NDArray[np.float32]:
    shift = generator.uniform(-110, 110) + generator.uniform(-40, 40, 3)
    return values + shift.astype(np.float32)


def _blur(values: NDArray[np.float32], _other: Pixels, generator: np.random.Generator) -> NDArray[np.float32]:
    sigma = generator.uniform(1.5, 4)
    blurred: NDArray[np.float32] = ndimage.gaussian_filter(values, (sigma, sigma, 0))
    return blurred


def _noise(values: NDArray[np.float32], _other: Pixels, generator: np.random.Generator) -> NDArray[np.float32]:
    grain = ndimage.gaussian_filter(generator.normal(size=values.shape[:2]), generator.uniform(0, 3))
    noisy: NDArray[np.float32] = (values + (grain / grain.std() * generator.uniform(15, 50))[..., None]).astype(
        np.float32
    )
    return noisy


_Change = Callable[[NDArray[np.float32], Pixels, np.random.Generator], NDArray[np.generic]]

_SMALL_CHANGES: tuple[_Change, ...] = (_stain, _blur, _noise)
_CHANGES: tuple[_Change, ...] = (_cut_paste, _stain, _blur, _noise)
