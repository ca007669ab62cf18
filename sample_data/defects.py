"""What can be wrong with a part: edits of its surface, its material, or things lying on it.

Every local defect returns where it is, so that the mask shows what was drawn.
"""

import math

import numpy as np
from lighting import Lighting, shadowed
from numpy.typing import NDArray
from parts import OVERSAMPLING, Frame, Part
from scipy import ndimage
from textures import Array, clouds, distance_to_path, smoothstep, wandering_path

Where = NDArray[np.bool_]  # (H, W) on the oversampled grid, true on the defect

RING_MIDDLE_PX = 67.0
RUST_RGB = np.array([[0.30, 0.125, 0.05], [0.15, 0.065, 0.035]])  # fresh and old


def _on_ring(part: Part, angle: float, radius_px: float) -> tuple[float, float]:
    """Position seen from the turning axis."""
    radius = radius_px * part.scale
    return radius * math.cos(angle), radius * math.sin(angle)


def _from_axis(part: Part) -> tuple[Array, Array]:
    return part.radius * np.cos(part.angle), part.radius * np.sin(part.angle)


def scratch(frame: Frame, part: Part, rng: np.random.Generator) -> Where:
    """Gouge across the tool marks: a bright groove with one raised lip and a finer companion."""
    x, y = _from_axis(part)
    angle = rng.uniform(0, 2 * math.pi)
    heading = angle + rng.choice([-1, 1]) * rng.uniform(0.5, 1.1)
    centre = _on_ring(part, angle, RING_MIDDLE_PX)
    length = rng.uniform(38, 48)
    where = np.zeros(frame.shape, dtype=bool)
    for depth, apart in ((1.0, 0.0), (0.35, 2.9)):
        part_length = length * rng.uniform(0.55, 0.8) if apart else length
        start = (
            centre[0] - math.cos(heading) * part_length / 2 - math.sin(heading) * apart,
            centre[1] - math.sin(heading) * part_length / 2 + math.cos(heading) * apart,
        )
        path = wandering_path(rng, start, heading, part_length, bend=0.03, step=3)
        distance, progress = distance_to_path(x, y, path)
        strength = depth * smoothstep(np.sin(math.pi * progress), 0, 0.35) * (part.edge < -0.5)
        part.height -= 0.85 * strength * np.exp(-((distance / 0.9) ** 2))
        part.height += 0.35 * strength * np.exp(-(((distance - 1.5) / 0.7) ** 2))
        line = strength * np.exp(-((distance / 0.75) ** 2))
        part.albedo *= 1 + 0.9 * line[..., None]
        part.matte += 0.5 * line * (1 - part.matte)
        where |= (strength > 0.15) & (distance < 1.9)
    return where


def crack(frame: Frame, part: Part, rng: np.random.Generator) -> Where:
    """Jagged dark gap that starts at the hole, narrows outwards and forks once."""
    x, y = _from_axis(part)
    angle = rng.uniform(0, 2 * math.pi)
    trunk = wandering_path(rng, _on_ring(part, angle, 43), angle, rng.uniform(31, 38), bend=0.12, step=2.6)
    trunk += rng.normal(0, 0.75, trunk.shape)
    fork_at = len(trunk) // 2
    fork_start = (float(trunk[fork_at, 0]), float(trunk[fork_at, 1]))
    fork = wandering_path(rng, fork_start, angle + rng.choice([-0.8, 0.8]), 12, bend=0.3, step=2.4)
    where = np.zeros(frame.shape, dtype=bool)
    for path, width in ((trunk, 1.15), (fork, 0.65)):
        distance, progress = distance_to_path(x, y, path)
        half_width = width * (1.05 - 0.75 * progress)
        gap = smoothstep(distance, half_width + 0.45, half_width - 0.35)
        part.height -= 0.6 * np.exp(-((distance / (half_width + 0.5)) ** 2))
        part.albedo *= 1 - 0.93 * gap[..., None]
        part.matte = np.maximum(part.matte, 0.9 * gap)
        where |= (distance < half_width + 0.9) & (part.edge < 0)
    return where


def missing_chip(frame: Frame, part: Part, rng: np.random.Generator) -> Where:
    """Piece broken out of the rim, with a rough grey fracture around the gap."""
    x, y = _from_axis(part)
    centre = _on_ring(part, rng.uniform(0, 2 * math.pi), 91)
    lobes = [(centre[0] + rng.normal(0, 3.5), centre[1] + rng.normal(0, 3.5), rng.uniform(9, 13)) for _ in range(3)]
    rough = 0.9 * clouds(rng, frame.shape, 5 * OVERSAMPLING, 2)
    inside_gap = np.maximum.reduce([size - np.hypot(x - cx, y - cy) for cx, cy, size in lobes]) + rough
    whole = part.edge.copy()
    part.edge = np.maximum(whole, inside_gap)
    slope = smoothstep(inside_gap, -4.5, -3.0)
    facets = clouds(rng, frame.shape, 3.5 * OVERSAMPLING, 2)
    part.height -= slope * np.maximum(inside_gap + 4.5, 0) * 0.8 + 0.5 * slope * facets
    part.albedo *= 1 - 0.45 * slope[..., None]
    part.matte = np.maximum(part.matte, 0.85 * slope)
    where: Where = (inside_gap > -4.0) & (whole < 0.0)
    return where


def dent(frame: Frame, part: Part, rng: np.random.Generator) -> Where:
    """Blow mark: an oval hollow with a raised brim that bends the highlight."""
    x, y = _from_axis(part)
    cx, cy = _on_ring(part, rng.uniform(0, 2 * math.pi), RING_MIDDLE_PX)
    turn = rng.uniform(0, math.pi)
    long, short = rng.uniform(10.5, 12), rng.uniform(8, 9)
    u = ((x - cx) * math.cos(turn) + (y - cy) * math.sin(turn)) / long
    v = ((y - cy) * math.cos(turn) - (x - cx) * math.sin(turn)) / short
    wobble = 1 + 0.06 * clouds(rng, frame.shape, 9 * OVERSAMPLING)
    reach = np.hypot(u, v) * wobble
    part.height -= 2.9 * smoothstep(reach, 1.05, 0.0)
    part.height += 0.22 * np.exp(-(((reach - 1.1) / 0.18) ** 2))
    part.albedo *= 1 - 0.15 * smoothstep(reach, 1.0, 0.4)[..., None]
    where: Where = (reach < 1.25) & (part.edge < 0)
    return where


def stain(frame: Frame, part: Part, rng: np.random.Generator) -> Where:
    """Dried coolant: a brownish film that is darkest along its border."""
    x, y = _from_axis(part)
    cx, cy = _on_ring(part, rng.uniform(0, 2 * math.pi), RING_MIDDLE_PX + 2)
    outline = np.hypot(x - cx, y - cy) / rng.uniform(14, 17) + 0.20 * clouds(rng, frame.shape, 14 * OVERSAMPLING, 3)
    film = smoothstep(outline, 1.0, 0.80)
    border = np.exp(-(((outline - 0.9) / 0.075) ** 2))
    strength = 0.38 * film * (1 + 0.18 * clouds(rng, frame.shape, 7 * OVERSAMPLING, 2)) + 0.17 * border
    tint = np.array([0.85, 1.05, 1.3])
    part.albedo *= np.clip(1 - strength[..., None] * tint, 0.05, 1)
    part.matte += (1 - part.matte) * 0.35 * film
    where: Where = (outline < 1.02) & (part.edge < 0)
    return where


def rust(frame: Frame, part: Part, rng: np.random.Generator) -> None:
    """Oxide over most of the part, thicker in patches."""
    patches = clouds(rng, frame.shape, 45 * OVERSAMPLING, 5)
    grain = clouds(rng, frame.shape, 4 * OVERSAMPLING, 3)
    cover = smoothstep(patches + 0.35 * grain, -1.35, 0.1) * 0.93
    age = smoothstep(clouds(rng, frame.shape, 22 * OVERSAMPLING, 4), -1.0, 1.4)[..., None]
    oxide = RUST_RGB[0] * (1 - age) + RUST_RGB[1] * age
    oxide = oxide * (1 + 0.16 * grain[..., None])
    part.albedo = part.albedo * (1 - cover[..., None]) + 1.5 * oxide * cover[..., None]
    part.albedo *= np.array([0.97, 0.90, 0.80])
    part.matte = np.maximum(part.matte, cover)
    part.height += 0.22 * cover * grain


def unmachined(frame: Frame, part: Part, rng: np.random.Generator) -> None:
    """Raw casting: no tool marks and so no stretched highlight, pitted grey skin, soft edges."""
    pits = smoothstep(clouds(rng, frame.shape, 5 * OVERSAMPLING, 2), 0.9, 2.2)
    skin = 0.22 * clouds(rng, frame.shape, 4 * OVERSAMPLING, 3) + 0.5 * clouds(rng, frame.shape, 22 * OVERSAMPLING)
    part.height = 9.0 - 0.6 * np.maximum(part.edge + 6.0, 0) ** 2 / 9.0 + skin - 0.8 * pits
    tone = 0.44 * (1 + 0.07 * clouds(rng, frame.shape, 30, 4) - 0.3 * pits)
    part.albedo = tone[..., None] * np.array([0.98, 1.0, 1.0])
    part.matte = np.full(frame.shape, 0.94)


def _strand(scene: Array, cover: Array, colour: Array, lighting: Lighting, height_px: float) -> Array:
    """Lay something thin with its shadow on the scene."""
    ground = shadowed(scene, cover, lighting, height_px)
    over = cover[..., None]
    result: Array = ground * (1 - over) + colour * over
    return result


def fibre(scene: Array, part: Part, lighting: Lighting, rng: np.random.Generator) -> tuple[Array, Where]:
    """Lay a dark textile thread over the ring; returns the scene and where the thread is."""
    x, y = _from_axis(part)
    angle = rng.uniform(0, 2 * math.pi)
    heading = angle + rng.choice([-1, 1]) * rng.uniform(1.0, 1.6)
    cx, cy = _on_ring(part, angle, RING_MIDDLE_PX + 4)
    start = (cx - 22 * math.cos(heading), cy - 22 * math.sin(heading))
    knots = wandering_path(rng, start, heading, 52, bend=0.5, step=4)
    path = ndimage.gaussian_filter1d(np.repeat(knots, 3, axis=0), 3, axis=0, mode="nearest")
    distance, progress = distance_to_path(x, y, path)
    twist = 0.5 + 0.5 * np.sin(progress * 150 + distance)
    cover = smoothstep(distance, 1.35, 0.75)
    tone = 0.05 + 0.05 * twist + 0.05 * np.clip(1 - distance, 0, 1)
    colour = tone[..., None] * np.array([0.75, 0.85, 1.25])
    return _strand(scene, cover, colour, lighting, 2.2), distance < 2.0


def swarf(scene: Array, part: Part, lighting: Lighting, rng: np.random.Generator) -> tuple[Array, Where]:
    """Lay a curled turning chip on the ring; returns the scene and where the chip is."""
    x, y = _from_axis(part)
    cx, cy = _on_ring(part, rng.uniform(0, 2 * math.pi), RING_MIDDLE_PX)
    heading = rng.uniform(0, 2 * math.pi)
    turns = np.linspace(0, 2 * math.pi * 3.4, 110)
    along = np.linspace(-13, 13, turns.size) + 4.2 * np.cos(turns)
    across = (6.2 - 0.12 * turns) * np.sin(turns) + 0.02 * np.linspace(-13, 13, turns.size) ** 2
    path = np.stack(
        [
            cx + along * math.cos(heading) - across * math.sin(heading),
            cy + along * math.sin(heading) + across * math.cos(heading),
        ],
        axis=1,
    )
    distance, progress = distance_to_path(x, y, path)
    cover = smoothstep(distance, 1.75, 1.15)
    phase = progress * 2 * math.pi * 3.4
    ribbon = 0.16 + 1.5 * np.clip(np.cos(phase - 0.6), 0, 1) ** 5 + 0.35 * np.clip(np.cos(phase + 2.2), 0, 1)
    ribbon *= 1 - 0.35 * smoothstep(distance, 0.5, 1.6)
    colour = ribbon[..., None] * np.array([0.92, 0.80, 0.62])
    return _strand(scene, cover, colour, lighting, 3.5), distance < 3.0
