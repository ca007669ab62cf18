"""Measure large pictures tile by tile: one picture at a time, its tiles in parallel, in bounded memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anomaly_cli.config import DetectorConfig
from anomaly_cli.detector.anomaly_detector import AnomalyDetector
from anomaly_cli.detector.backbones.backbone import Backbone
from anomaly_cli.detector.features import scale_features
from anomaly_cli.detector.nearest_prototype import nearest_prototype
from anomaly_cli.detector.scales import BLOCK, cell_step, is_local
from anomaly_cli.detector.tiles import (
    TILE,
    StitchedMaps,
    Tile,
    TileMaps,
    measure_tile,
    picture_scale,
    stitch,
    tiles_of,
)
from anomaly_cli.errors import ConfigError, UnreadableImageError
from anomaly_cli.images.decode import LoadedImage, read_size
from anomaly_cli.images.picture import Picture, picture_size
from anomaly_cli.scoring.parallel import parallel_map
from anomaly_cli.scoring.pixels import inspected_tensor, pixels_to_tensor


def stitched_maps(detector: AnomalyDetector, picture: Picture, workers: int) -> StitchedMaps:
    """Measure all tiles of a picture and join their maps of the local scales."""
    device = next(detector.buffers()).device

    def measure(tile: Tile) -> TileMaps:
        return measure_tile(detector, pixels_to_tensor(picture.read(*tile[:4]), device), tile)

    tiles = tiles_of(picture.rows, picture.columns)
    names = detector.local_names
    return stitch(
        names, (picture.rows, picture.columns), parallel_map(measure, tiles, workers), cells_of(picture, names)
    )


def cells_of(picture: Picture, names: tuple[str, ...]) -> dict[str, NDArray[np.bool_]] | None:
    """Find the inspected cells of local scales in the whole picture; None for all."""
    masks = {name: picture.inspected_cells(cell_step(name, picture.rows, picture.columns)) for name in names}
    return {name: mask for name, mask in masks.items() if mask is not None} or None


@torch.inference_mode()
def whole_maps(detector: AnomalyDetector, image: LoadedImage) -> list[Tensor]:
    """Measure the scales of the whole image, at network size: (1, h, w) maps in the order of their names."""
    device = next(detector.buffers()).device
    names = tuple(name for name in detector.scale_names if not is_local(name))
    inspected = inspected_tensor([image], device)
    pixels = pixels_to_tensor(image.pixels, device)
    return detector.compare(scale_features(detector.backbone, pixels, names, inspected=inspected), inspected)[0]


def tiled_distance_maps(detector: AnomalyDetector, image: LoadedImage, workers: int) -> list[Tensor]:
    """Measure every scale of an image with a picture, as `AnomalyDetector.distance_maps`: on the CPU."""
    assert image.picture is not None
    local = stitched_maps(detector, image.picture, workers).maps
    return [*local, *(each.cpu() for each in whole_maps(detector, image))]


def tell_cost(
    tell: Callable[[str], None] | None,
    config: DetectorConfig,
    backbone: Backbone,
    names: tuple[str, ...],
    paths: list[Path],
    workers: int,
) -> None:
    """Call `tell` with one line on what reading images in tiles will cost, where they are.

    Args:
        tell: takes the line; None for nobody.
        config: settings.
        backbone: ready for inference.
        names: of the local scales.
        paths: of the images; the first readable one stands for all.
        workers: threads that measure tiles.

    Raises:
        ConfigError: the backbone is a transformer.
    """
    if config.smallest_defect is not None and backbone.names[0].startswith(BLOCK):
        raise ConfigError(
            f"--smallest-defect does not go with {config.backbone}: "
            "each cell of a transformer depends on all of its tile"
        )
    if tell is None or config.smallest_defect is None:
        return
    for path in paths:
        try:
            height, width = read_size(path)
        except UnreadableImageError:
            continue
        tiles = tiles_of(*picture_size(height, width, picture_scale(config.smallest_defect)))
        share = sum(each.height * each.width for each in tiles) / TILE**2
        seconds = _time_of_tile(backbone, names, config.prototypes) * share / min(workers, len(tiles))
        count = f"{len(tiles)} tile{'s' * (len(tiles) != 1)}"
        tell(f"{width} x {height} px: {count} an image, about {seconds:.2g} s each on this machine")
        return


@torch.inference_mode()
def _time_of_tile(backbone: Backbone, names: tuple[str, ...], prototypes: int) -> float:
    """Measure how many seconds a tile takes one thread: network, and search among so many random prototypes."""
    device = next(backbone.buffers()).device
    generator = torch.Generator().manual_seed(0)
    tile = torch.rand(1, 3, TILE, TILE, generator=generator).to(device)

    def run(_: int) -> float:
        start = time.perf_counter()
        for cells in scale_features(backbone, tile, names).values():
            queries = cells[0].flatten(1).T.contiguous()
            nearest_prototype(queries, torch.rand(prototypes, queries.shape[1], generator=generator).to(device))
        return time.perf_counter() - start

    # In one thread, as tiles are measured; the first time the weights are laid out for the size.
    return list(parallel_map(run, range(2), 1))[-1]
