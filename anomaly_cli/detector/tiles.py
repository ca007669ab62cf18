"""Tiles of a large picture: where they lie, and how the maps of each join without seams."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anomaly_cli.detector.anomaly_detector import AnomalyDetector
from anomaly_cli.detector.features import scale_features
from anomaly_cli.detector.scales import FINEST_STEP, cell_step

TILE = 768  # pixels of a side; of the same size, for the weights are laid out for each
# Pixels at each inner side of a tile that only serve its neighbourhood: half the receptive field of stride 16 is 91.
MARGIN = 96
# Pixels of the network that the smallest defect spans: two cells of the anomaly map. With one cell, defects of 12
# pixels on textures are found much worse (docs/method.md).
SMALLEST = 2 * FINEST_STEP


def picture_scale(smallest_defect: int) -> float:
    """Choose pixels of the network a pixel of a file, so that the smallest defect spans `SMALLEST`."""
    return SMALLEST / smallest_defect


class Tile(NamedTuple):
    """A tile, and the core of it, whose cells count; all in pixels of the whole, multiples of `SIZE_STEP`."""

    top: int
    left: int
    height: int
    width: int
    core_top: int
    core_left: int
    core_bottom: int
    core_right: int

    def core_cells(self, step: int, *, in_tile: bool = False) -> tuple[slice, slice]:
        """Find the cells of the core in a map of cells of `step` pixels: that of the whole, or that of the tile."""
        top, left = (self.top, self.left) if in_tile else (0, 0)
        return (
            slice((self.core_top - top) // step, (self.core_bottom - top) // step),
            slice((self.core_left - left) // step, (self.core_right - left) // step),
        )


def tiles_of(rows: int, columns: int) -> list[Tile]:
    """Cover a picture with tiles whose cores touch: each pixel lies in one core, `MARGIN` from an inner side."""
    return [
        Tile(top, left, bottom - top, right - left, *(core_top, core_left, core_bottom, core_right))
        for top, bottom, core_top, core_bottom in _spans(rows)
        for left, right, core_left, core_right in _spans(columns)
    ]


def _spans(length: int) -> list[tuple[int, int, int, int]]:
    """Cover a side: start and end of each tile, and of its core."""
    if length <= TILE:
        return [(0, length, 0, length)]
    starts = [*range(0, length - TILE, TILE - 2 * MARGIN), length - TILE]
    bounds = [0, *(start + MARGIN for start in starts[1:]), length]
    return [(start, start + TILE, *bounds[i : i + 2]) for i, start in enumerate(starts)]


class TileMaps(NamedTuple):
    """Distance maps and nearest prototypes of the core of a tile, (h, w) for each local scale."""

    tile: Tile
    distances: list[Tensor]
    nearest: list[Tensor]


@torch.inference_mode()
def measure_tile(detector: AnomalyDetector, pixels: Tensor, tile: Tile) -> TileMaps:
    """Measure the cells of a tile.

    Args:
        detector: whose local scales take part.
        pixels: (1, 3, h, w) of the tile, float RGB in [0, 1].
        tile: where it lies.
    """
    features = scale_features(detector.backbone, pixels, detector.local_names)
    distances, nearest = detector.compare(features)
    steps = [cell_step(name, tile.height, tile.width) for name in detector.local_names]
    cores = [tile.core_cells(step, in_tile=True) for step in steps]
    return TileMaps(
        tile,
        [each[0][core].cpu() for each, core in zip(distances, cores, strict=True)],
        [each[0][core].int().cpu() for each, core in zip(nearest, cores, strict=True)],
    )


@dataclass
class StitchedMaps:
    """The distance maps of a picture, and its most distant cells.

    Attributes:
        maps: (1, h, w) for each local scale, NaN where ignored.
        peak_cells: (1, L, 2) as in `Detection`.
    """

    maps: list[Tensor] = field(default_factory=list)
    peak_cells: Tensor = field(default_factory=lambda: torch.zeros(1, 0, 2, dtype=torch.int64))


def stitch(
    names: tuple[str, ...],
    size: tuple[int, int],
    measured: Iterable[TileMaps],
    inspected: dict[str, NDArray[np.bool_]] | None = None,
) -> StitchedMaps:
    """Join the maps of the cores.

    Args:
        names: of the local scales.
        size: rows and columns of the picture, pixels.
        measured: every tile of it.
        inspected: for each scale the (h, w) cells that are inspected; None for all.
    """
    steps = [cell_step(name, *size) for name in names]
    maps = [torch.empty(size[0] // step, size[1] // step) for step in steps]
    nearest = [torch.empty(each.shape, dtype=torch.int32) for each in maps]
    for tile, distances, prototypes in measured:
        for i, step in enumerate(steps):
            core = tile.core_cells(step)
            maps[i][core], nearest[i][core] = distances[i], prototypes[i]
    peaks = []
    for name, each, indices in zip(names, maps, nearest, strict=True):
        if inspected is not None:
            each.masked_fill_(~torch.from_numpy(inspected[name]), torch.nan)
        cell = int(each.nan_to_num(nan=-1.0).argmax())
        peaks.append([cell, int(indices.flatten()[cell])])
    return StitchedMaps([each[None] for each in maps], torch.tensor([peaks]))
