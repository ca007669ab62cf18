"""Noise and line fields from which the pictures are built; knows nothing of parts or light."""

import math
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

Array = NDArray[np.float64]

STREAK_ROWS_PER_PX = 4
STREAK_MAX_RADIUS_PX = 200
STREAK_ANGLES = 256


def clouds(rng: np.random.Generator, shape: tuple[int, int], feature: float, octaves: int = 1) -> Array:
    """Smooth random field, mean 0 and deviation 1.

    Args:
        rng: source of the randomness.
        shape: (height, width) of the result.
        feature: size of the largest blobs, in pixels of the result.
        octaves: number of layers; each has half the size and half the strength of the one before.
    """
    field = np.zeros(shape)
    for octave in range(octaves):
        step = max(feature / 2**octave, 1.0)
        grid_shape = [math.ceil(side / step) + 4 for side in shape]
        grid = Image.fromarray(rng.normal(size=grid_shape).astype(np.float32))
        size = (math.ceil(grid_shape[1] * step), math.ceil(grid_shape[0] * step))
        smooth = np.asarray(grid.resize(size, Image.Resampling.BICUBIC), dtype=np.float64)
        top, left = (int(rng.integers(0, round(step) + 1)) for _ in range(2))
        field += smooth[top : top + shape[0], left : left + shape[1]] / 2**octave
    return standardise(field)


def standardise(field: Array) -> Array:
    """Shift and scale to mean 0 and deviation 1."""
    result: Array = (field - field.mean()) / field.std()
    return result


def smoothstep(field: Array, low: Array | float, high: Array | float) -> Array:
    """Rise smoothly from 0 at `low` to 1 at `high`; a `low` above `high` falls instead."""
    ramp = np.clip((field - low) / (high - low), 0, 1)
    result: Array = ramp * ramp * (3 - 2 * ramp)
    return result


def turning_marks(rng: np.random.Generator, radius_px: Array, angle: Array) -> Array:
    """Marks that a lathe tool leaves: almost constant along a circle, rough across it; deviation about 1."""
    rows = STREAK_MAX_RADIUS_PX * STREAK_ROWS_PER_PX
    fine = standardise(ndimage.gaussian_filter1d(rng.normal(size=rows), 1.1))
    coarse = standardise(ndimage.gaussian_filter1d(rng.normal(size=rows), 9.0))
    arcs = ndimage.gaussian_filter(rng.normal(size=(rows, STREAK_ANGLES)), (1.2, 14), mode="wrap")
    texture = (0.75 * fine + 0.5 * coarse)[:, None] + 0.55 * standardise(arcs)
    row = np.clip(radius_px, 0, STREAK_MAX_RADIUS_PX - 1) * STREAK_ROWS_PER_PX
    column = angle / (2 * math.pi) % 1 * STREAK_ANGLES
    result: Array = ndimage.map_coordinates(texture, [row, column], order=1, mode="grid-wrap")
    return result


def distance_to_path(x: Array, y: Array, path: Array) -> tuple[Array, Array]:
    """Distance of every pixel to a polyline, and where along it the nearest point lies.

    Args:
        x: (H, W) pixel positions.
        y: (H, W) pixel positions.
        path: (N, 2) corners of the polyline as x, y.

    Returns:
        Distance (H, W) in the unit of the positions; progress (H, W) from 0 at the start to 1 at the end.
    """
    nearest = np.full(x.shape, np.inf)
    progress = np.zeros(x.shape)
    for index, ((x0, y0), (x1, y1)) in enumerate(pairwise(path)):
        dx, dy = x1 - x0, y1 - y0
        along = np.clip(((x - x0) * dx + (y - y0) * dy) / max(dx * dx + dy * dy, 1e-9), 0, 1)
        distance = np.hypot(x - x0 - along * dx, y - y0 - along * dy)
        closer = distance < nearest
        nearest[closer] = distance[closer]
        progress[closer] = (index + along[closer]) / (len(path) - 1)
    return nearest, progress


def wandering_path(
    rng: np.random.Generator,
    start: tuple[float, float],
    heading: float,
    length: float,
    *,
    bend: float,
    step: float,
) -> Array:
    """Polyline whose direction drifts at random: (N, 2) points x, y.

    Args:
        rng: source of the randomness.
        start: first point as x, y.
        heading: first direction in radians.
        length: total length, in the unit of `start`.
        bend: deviation of the change of direction at each corner, in radians.
        step: length of one segment.
    """
    count = max(int(length / step), 2)
    directions = heading + np.cumsum(rng.normal(0, bend, count))
    moves = step * np.stack([np.cos(directions), np.sin(directions)], axis=1)
    path: Array = np.concatenate([[start], start + np.cumsum(moves, axis=0)])
    return path
