"""How the bench and the parts look under the lamps, in linear light; knows nothing of defects or cameras."""

import math
from dataclasses import dataclass

import numpy as np
from parts import OVERSAMPLING, Frame, Part
from scipy import ndimage
from textures import Array, clouds, distance_to_path, smoothstep, wandering_path

CAMERA_HEIGHT_PX = 1100.0
LAMP_DISTANCE_PX = 900.0
ALONG_GROOVE = 0.10  # spread of the highlight along the tool marks
ACROSS_GROOVE = 0.52  # and across them: what stretches it into a bow-tie


@dataclass(frozen=True)
class Lamp:
    """One soft lamp."""

    azimuth: float  # radians, 0 to the right, growing clockwise as y points down
    elevation: float  # radians above the bench
    power: float


@dataclass(frozen=True)
class Lighting:
    """Lamps of one picture; the first casts the visible shadow."""

    lamps: tuple[Lamp, ...]
    ambient: float

    @classmethod
    def varied(cls, rng: np.random.Generator) -> "Lighting":
        """The inspection station's lamps, with the small changes between shots."""
        turn = rng.normal(0, 0.11)
        key = Lamp(-2.25 + turn, math.radians(rng.normal(50, 2)), rng.normal(1.0, 0.04))
        fill = Lamp(-0.45 + turn + rng.normal(0, 0.07), math.radians(rng.normal(57, 2)), rng.normal(0.5, 0.05))
        return cls((key, fill), rng.normal(0.21, 0.012))


def _unit(x: Array, y: Array, z: Array) -> Array:
    vectors = np.stack([x, y, z], axis=-1)
    result: Array = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    return result


def _dot(a: Array, b: Array) -> Array:
    result: Array = np.einsum("...k,...k->...", a, b)
    return result


def _to_camera(frame: Frame) -> Array:
    return _unit(-frame.x, -frame.y, np.full(frame.shape, CAMERA_HEIGHT_PX))


def _to_lamp(frame: Frame, lamp: Lamp) -> Array:
    flat = LAMP_DISTANCE_PX * math.cos(lamp.elevation)
    x, y = flat * math.cos(lamp.azimuth), flat * math.sin(lamp.azimuth)
    up = np.full(frame.shape, LAMP_DISTANCE_PX * math.sin(lamp.elevation))
    return _unit(x - frame.x, y - frame.y, up)


def _normals(height: Array) -> Array:
    slope_y: Array = np.gradient(height * OVERSAMPLING, axis=0)
    slope_x: Array = np.gradient(height * OVERSAMPLING, axis=1)
    return _unit(-slope_x, -slope_y, np.ones_like(height))


def _surroundings(direction: Array, lighting: Lighting) -> Array:
    """Light that a mirror sees in a direction: bright ceiling, dim walls, brighter on the lamp's side."""
    lamp = lighting.lamps[0]
    towards = direction[..., 0] * math.cos(lamp.azimuth) + direction[..., 1] * math.sin(lamp.azimuth)
    wall: Array = 0.25 + 3.2 * np.clip(towards, 0, 1) ** 3
    ceiling = smoothstep(direction[..., 2], 0.15, 0.95)
    return lighting.ambient * (wall * (1 - ceiling) + (1.0 + 0.25 * towards) * ceiling)


def _shade(frame: Frame, part: Part, lighting: Lighting) -> Array:
    """Light (H, W, 3) that the part sends to the camera.

    The highlight follows Ward's anisotropic model with tool marks along circles, so it stretches
    across the marks and shows as the bow-tie of turned metal.
    """
    normal = _normals(part.height)
    around = np.stack([-np.sin(part.angle), np.cos(part.angle), np.zeros(frame.shape)], axis=-1)
    around -= normal * _dot(normal, around)[..., None]
    outward = np.cross(around, normal)
    view = _to_camera(frame)
    mirrored = 2 * normal * _dot(normal, view)[..., None] - view
    shiny = _surroundings(mirrored, lighting)
    dull = np.full(frame.shape, lighting.ambient * 0.55)
    for lamp in lighting.lamps:
        ray = _to_lamp(frame, lamp)
        facing = np.clip(_dot(normal, ray), 0, 1)
        half = _unit(*np.moveaxis(ray + view, -1, 0))
        tilt = (_dot(half, around) / ALONG_GROOVE) ** 2 + (_dot(half, outward) / ACROSS_GROOVE) ** 2
        glint = np.exp(-tilt / np.maximum(_dot(half, normal), 0.05) ** 2)
        shiny += lamp.power * (1.75 * glint + 0.05) * np.sqrt(facing)
        dull += lamp.power * 0.42 * facing
    light = shiny * (1 - part.matte) + dull * part.matte
    result: Array = part.albedo * light[..., None]
    return result


def bench(frame: Frame, rng: np.random.Generator, lighting: Lighting) -> Array:
    """Dark matte rubber top with grain, faint scuffs and a little dust: (H, W, 3) linear light."""
    grain = 0.30 * clouds(rng, frame.shape, 3.0 * OVERSAMPLING, 2) + 0.16 * clouds(rng, frame.shape, 40, 2)
    normal = _normals(grain)
    light = np.full(frame.shape, lighting.ambient)
    for lamp in lighting.lamps:
        light += lamp.power * 0.8 * np.clip(_dot(normal, _to_lamp(frame, lamp)), 0, 1)
    tone = 0.045 * (1 + 0.10 * clouds(rng, frame.shape, 180, 3) + 0.05 * clouds(rng, frame.shape, 2.0))
    tone += _scuffs(frame, rng) + _dust(frame, rng)
    colour = np.array([0.96, 1.0, 1.06])
    result: Array = (tone * light)[..., None] * colour
    return result


def _scuffs(frame: Frame, rng: np.random.Generator) -> Array:
    tone = np.zeros(frame.shape)
    heading = rng.uniform(0, math.pi)
    patchy = smoothstep(clouds(rng, frame.shape, 14), -0.9, 0.9)
    for _ in range(int(rng.integers(3, 8))):
        start = (rng.uniform(-150, 150), rng.uniform(-150, 150))
        length = rng.uniform(20, 120)
        path = wandering_path(rng, start, heading + rng.normal(0, 0.5), length, bend=0.05, step=10)
        distance, _ = distance_to_path(frame.x, frame.y, path)
        tone += rng.uniform(0.006, 0.020) * patchy * np.exp(-((distance / rng.uniform(0.4, 1.0)) ** 2))
    return tone


def _dust(frame: Frame, rng: np.random.Generator) -> Array:
    specks = (rng.random(frame.shape) > 0.9997) * rng.uniform(0.2, 1.0, frame.shape)
    result: Array = 0.35 * ndimage.gaussian_filter(specks, 0.35 * OVERSAMPLING)
    return result


def shadowed(scene: Array, coverage: Array, lighting: Lighting, height_px: float) -> Array:
    """Darken a scene where something above it keeps the light away.

    Args:
        scene: (H, W, 3) linear light without the object.
        coverage: (H, W) outline of the object, 1 inside.
        lighting: its first lamp gives the direction.
        height_px: how high the object's top is above the scene.
    """
    lamp = lighting.lamps[0]
    reach = height_px / math.tan(lamp.elevation) * OVERSAMPLING
    move = (-reach * math.sin(lamp.azimuth), -reach * math.cos(lamp.azimuth))
    # A shadow sweeps from the object's foot to the far end: three steps stand for the sweep.
    swept = [ndimage.shift(coverage, (move[0] * k, move[1] * k), order=1) for k in (0.4, 0.7, 1.0)]
    cast = ndimage.gaussian_filter(np.maximum.reduce(swept), (0.8 + 0.13 * height_px) * OVERSAMPLING)
    contact = ndimage.gaussian_filter(coverage, (1.0 + 0.35 * height_px) * OVERSAMPLING)
    result: Array = scene * ((1 - 0.66 * cast) * (1 - 0.55 * contact))[..., None]
    return result


def lay_part(scene: Array, frame: Frame, part: Part, lighting: Lighting) -> Array:
    """Put a part with its shadow on a scene (H, W, 3)."""
    coverage = part.coverage
    ground = shadowed(scene, coverage, lighting, part.lift + float(np.median(part.height[coverage > 0.5])))
    over = coverage[..., None]
    result: Array = ground * (1 - over) + _shade(frame, part, lighting) * over
    return result
