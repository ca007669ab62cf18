"""Shapes and surfaces of what may lie on the bench: washers and a hexagon nut, as height fields."""

import math
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from textures import Array, clouds, smoothstep, turning_marks

OVERSAMPLING = 2  # rendered pixels per picture pixel and axis
OUTER_RADIUS_PX = 89.0
HOLE_RADIUS_PX = 45.0
CHAMFER_PX = 3.4
STEEL_RGB = (0.80, 0.79, 0.77)


@dataclass(frozen=True)
class Frame:
    """Pixel grid of one oversampled picture; positions are in picture pixels, 0, 0 at the middle."""

    x: Array  # (H, W), to the right
    y: Array  # (H, W), downwards

    @classmethod
    def of_size(cls, height: int, width: int) -> "Frame":
        """Grid for a picture of that many final pixels."""
        rows = (np.arange(height * OVERSAMPLING) + 0.5) / OVERSAMPLING - height / 2
        columns = (np.arange(width * OVERSAMPLING) + 0.5) / OVERSAMPLING - width / 2
        x, y = np.meshgrid(columns, rows)
        return cls(x=x, y=y)

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W) of the oversampled grid."""
        height, width = self.x.shape
        return height, width


@dataclass
class Part:
    """One metal part; defects edit its fields in place. Fields are (H, W), lengths in picture pixels."""

    radius: Array  # distance to the turning axis
    angle: Array  # direction from the turning axis, radians
    edge: Array  # signed distance to the outline, negative inside the metal
    height: Array  # above the part's underside
    albedo: Array  # (H, W, 3) reflectance
    matte: Array  # 0 turned metal with stretched highlights, 1 dull like cast iron
    scale: float
    lift: float  # height of the underside above the bench

    @property
    def coverage(self) -> Array:
        """1 where the part hides what is below, 0 elsewhere."""
        return smoothstep(self.edge, 0.25, -0.25)


def _polar(frame: Frame, centre: tuple[float, float]) -> tuple[Array, Array]:
    dx, dy = frame.x - centre[0], frame.y - centre[1]
    return np.hypot(dx, dy), np.arctan2(dy, dx)


def _bevel(edge: Array, width: float) -> Array:
    """Depth of a 40-degree bevel along the outline, with its corner slightly worn."""
    depth: Array = ndimage.gaussian_filter(np.maximum(edge + width, 0) * 0.85, 0.5 * OVERSAMPLING)
    return depth


def washer(
    frame: Frame,
    rng: np.random.Generator,
    centre: tuple[float, float],
    scale: float,
    *,
    hole_offset: tuple[float, float] = (0.0, 0.0),
    lift: float = 0.0,
) -> Part:
    """Turned flat ring.

    Args:
        frame: grid to draw on.
        rng: source of the tool marks.
        centre: x, y in picture pixels.
        scale: size relative to the nominal part.
        hole_offset: shift of the hole against the outline, in picture pixels.
        lift: height of the underside above the bench.
    """
    radius, angle = _polar(frame, centre)
    hole_radius, _ = _polar(frame, (centre[0] + hole_offset[0], centre[1] + hole_offset[1]))
    edge = np.maximum(radius - OUTER_RADIUS_PX * scale, HOLE_RADIUS_PX * scale - hole_radius)
    marks = turning_marks(rng, radius, angle)
    height = 9.0 - _bevel(edge, CHAMFER_PX * scale) + 0.035 * marks
    tone = 1 + 0.07 * marks + 0.05 * clouds(rng, frame.shape, 70)
    albedo = tone[..., None] * np.array(STEEL_RGB)
    return Part(radius, angle, edge, height, albedo, np.full(frame.shape, 0.12), scale, lift)


def hex_nut(frame: Frame, rng: np.random.Generator, centre: tuple[float, float], scale: float) -> Part:
    """Hexagon nut about as large as the washer, with a threaded hole."""
    radius, angle = _polar(frame, centre)
    turn = rng.uniform(0, math.pi / 3)
    flats = [radius * np.abs(np.cos(angle - turn - k * math.pi / 3)) for k in range(3)]
    apothem, hole = 80.0 * scale, 41.0 * scale
    outline = np.maximum.reduce(flats) - apothem
    edge = np.maximum(outline, hole - 8.0 - radius)
    marks = turning_marks(rng, radius, angle)
    height = 26.0 + 0.03 * marks - _bevel(outline, 1.5)
    height -= 0.55 * np.maximum(radius - 0.96 * apothem, 0)  # corners are turned off at an angle
    height -= 0.9 * np.maximum(hole + 4 - radius, 0)
    helix = (radius + 3.2 * angle / (2 * math.pi)) / 3.2 % 1
    inside = smoothstep(radius, hole + 0.5, hole - 0.5)
    height += inside * 1.5 * np.abs(2 * helix - 1)
    tone = (1 + 0.06 * marks) * (1 - 0.65 * inside * smoothstep(radius, hole, hole - 8))
    albedo = tone[..., None] * np.array(STEEL_RGB) * 0.93
    return Part(radius, angle, edge, height, albedo, np.full(frame.shape, 0.15), scale, 0.0)
