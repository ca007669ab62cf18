"""Sample cells of large pictures, from some of their tiles."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from anomaly_cli.detector.backbones.backbone import Backbone
from anomaly_cli.detector.features import scale_features
from anomaly_cli.detector.scales import cell_step
from anomaly_cli.detector.tiles import Tile, tiles_of
from anomaly_cli.images.picture import Picture
from anomaly_cli.scoring.parallel import parallel_map
from anomaly_cli.scoring.pixels import pixels_to_tensor
from anomaly_cli.scoring.tiled import cells_of
from anomaly_cli.training.cell_samples import Sample
from anomaly_cli.training.run import TrainingContext

TILES = 16  # of a picture; cells of more would differ little from theirs


def sample_tiles(
    backbone: Backbone, picture: Picture, names: tuple[str, ...], count: int, seed: int, run: TrainingContext
) -> dict[str, Sample]:
    """Choose about `count` random cells of each local scale, from at most `TILES` random tiles.

    Returns:
        By name; places are those of the cells in the map of the whole picture, row-major.
    """
    tiles, cells = tiles_of(picture.rows, picture.columns), cells_of(picture, names)
    if cells is not None:  # only tiles in whose core each scale inspects a cell
        tiles = [tile for tile in tiles if all(_core(cells[name], tile, name).any() for name in names)] or tiles
    generator = torch.Generator().manual_seed(seed)
    chosen = [tiles[i] for i in sorted(torch.randperm(len(tiles), generator=generator)[:TILES].tolist())]
    each = -(-count // len(chosen))

    def sample(numbered: tuple[int, Tile]) -> dict[str, Sample]:
        number, tile = numbered
        with torch.inference_mode():
            pixels = pixels_to_tensor(picture.read(*tile[:4]), run.device)
            features = scale_features(backbone, pixels, names)
        found = {}
        for name in names:
            step = cell_step(name, tile.height, tile.width)
            core = features[name][0][:, *tile.core_cells(step, in_tile=True)]  # (D, h, w)
            D, _, w = core.shape
            order = torch.randperm(core[0].numel(), generator=torch.Generator().manual_seed(seed + number))
            if cells is not None:
                order = order[torch.from_numpy(_core(cells[name], tile, name)).flatten()[order]]
            order = order[:each]
            rows, columns = tile.core_top // step + order // w, tile.core_left // step + order % w
            values = core.reshape(D, -1).T[order.to(core.device)].cpu()
            found[name] = Sample(values, rows * (picture.columns // step) + columns)
        return found

    parts = list(parallel_map(sample, list(enumerate(chosen)), run.workers))
    return {
        name: Sample(torch.cat([part[name].values for part in parts]), torch.cat([part[name].places for part in parts]))
        for name in names
    }


def _core(cells: NDArray[np.bool_], tile: Tile, name: str) -> NDArray[np.bool_]:
    """Cut the cells of the core of a tile out of those of the picture."""
    return cells[tile.core_cells(cell_step(name, tile.height, tile.width))]
