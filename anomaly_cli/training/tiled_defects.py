"""Stage 2 for large pictures: small synthetic defects, of which only the surroundings are measured again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from anomaly_cli.detector.anomaly_detector import AnomalyDetector
from anomaly_cli.detector.scales import cell_step
from anomaly_cli.detector.tiles import MARGIN, SMALLEST, Tile, measure_tile
from anomaly_cli.images.network_size import SIZE_STEP
from anomaly_cli.images.picture import Picture
from anomaly_cli.images.roi import inspected_part
from anomaly_cli.scoring.pixels import pixels_to_tensor
from anomaly_cli.scoring.tiled import whole_maps
from anomaly_cli.training.augmentation import synthetic_defect, synthetic_speck
from anomaly_cli.training.cross_fitting import CrossFit, HeldOutImage, load_again
from anomaly_cli.training.run import TrainingContext

LARGEST = 8 * SMALLEST  # pixels of a synthetic one; larger ones show in the whole image
READ = -(-LARGEST // SIZE_STEP) * SIZE_STEP + SIZE_STEP + 4 * MARGIN  # pixels read around a defect


@dataclass(frozen=True)
class Change:
    """What a synthetic defect changes in the maps of a held-out image.

    Attributes:
        number: index of the held-out image.
        place: row and column where the changed part of the local maps begins, pixels of the whole.
        local: the changed part of the map of each local scale.
        whole: maps of the other scales, with another defect that is large enough for them.
    """

    number: int
    place: tuple[int, int]
    local: list[Tensor]
    whole: list[Tensor]


class ChangedMaps(Sequence[list[Tensor]]):
    """The maps of held-out images with defects: each is made when it is asked for, so that few are in memory."""

    def __init__(self, fitted: CrossFit, changes: list[Change]) -> None:
        self._fitted = fitted
        self._changes = changes

    def __len__(self) -> int:
        return len(self._changes)

    @overload
    def __getitem__(self, index: int) -> list[Tensor]: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[list[Tensor]]: ...
    def __getitem__(self, index: int | slice) -> list[Tensor] | Sequence[list[Tensor]]:
        """Make the maps of one defect."""
        if isinstance(index, slice):
            return ChangedMaps(self._fitted, self._changes[index])
        change = self._changes[index]
        maps = [*self._fitted.measured[change.number][: len(change.local)], *change.whole]
        for i, (name, part) in enumerate(zip(self._fitted.final.local_names, change.local, strict=True)):
            step = cell_step(name, *change.place)
            top, left = (start // step for start in change.place)
            maps[i] = maps[i].clone()
            rows, columns = slice(top, top + part.shape[0]), slice(left, left + part.shape[1])
            kept = maps[i][0, rows, columns]
            maps[i][0, rows, columns] = torch.where(kept.isnan(), kept, part)
        return maps


def plant(fitted: CrossFit, items: list[HeldOutImage], planted_in: list[int], run: TrainingContext) -> ChangedMaps:
    """Plant a defect in each item, and measure what it changes by the detector of its fold.

    Args:
        fitted: whose held-out images the items are.
        items: with seeds.
        planted_in: index of the held-out image of each item.
        run: settings and machine.
    """
    of_image: dict[int, list[HeldOutImage]] = {}
    for number, item in zip(planted_in, items, strict=True):
        of_image.setdefault(number, []).append(item)

    def change(planted: list[HeldOutImage]) -> list[dict[str, Any]]:
        return _changes(fitted.detectors[planted[0].fold + 1], planted, run)

    results = run.map_images("planted", "planting defects (stage 2)", change, list(of_image.values()))
    found = {number: iter(changes) for number, changes in zip(of_image, results, strict=True)}
    return ChangedMaps(fitted, [Change(number, **next(found[number])) for number in planted_in])


def _changes(detector: AnomalyDetector, planted: list[HeldOutImage], run: TrainingContext) -> list[dict[str, Any]]:
    """Plant defects in the same image, which is read once; one after another, each in the unchanged image."""
    image = load_again(planted[0].path, run)
    picture, changes = image.picture, []
    assert picture is not None
    for item in planted:
        assert item.other is not None
        generator = np.random.default_rng(item.defect_seed)
        place, local = _measure_around(detector, picture, generator, run)
        other = inspected_part(load_again(item.other, run, tiled=False))
        pixels = synthetic_defect(image.pixels, other, generator, image.inspected)
        whole = [each.cpu() for each in whole_maps(detector, replace(image, pixels=pixels))]
        changes.append({"place": place, "local": local, "whole": whole})
    return changes


def _measure_around(
    detector: AnomalyDetector, picture: Picture, generator: np.random.Generator, run: TrainingContext
) -> tuple[tuple[int, int], list[Tensor]]:
    """Plant a speck at a random inspected place; measure the cells within reach of it.

    Returns:
        Where they begin, pixels of the whole, and the distances of each local scale.
    """
    y, x = _random_place(picture, generator)
    top, bottom = _span(y, picture.rows)
    left, right = _span(x, picture.columns)
    pixels = picture.read(top, left, bottom - top, right - left)
    size = float(np.exp(generator.uniform(np.log(SMALLEST), np.log(LARGEST))))
    changed = synthetic_speck(pixels, (y - top, x - left), size, generator)
    # What is cut off at an inner side is reached by no defect, and saw no pixel beyond the side of the part read.
    core = tuple(
        (start + (MARGIN if start else 0), end - (MARGIN if end < length else 0))
        for start, end, length in ((top, bottom, picture.rows), (left, right, picture.columns))
    )
    tile = Tile(top, left, bottom - top, right - left, core[0][0], core[1][0], core[0][1], core[1][1])
    return (core[0][0], core[1][0]), measure_tile(detector, pixels_to_tensor(changed, run.device), tile).distances


def _random_place(picture: Picture, generator: np.random.Generator) -> tuple[int, int]:
    """Choose an inspected pixel of the whole, all alike likely: row, column."""
    if picture.inspected is None:
        return int(generator.integers(picture.rows)), int(generator.integers(picture.columns))
    h, w = picture.inspected.shape
    number = int(generator.choice(np.flatnonzero(picture.inspected)))
    row, column = divmod(number, w)
    return (2 * row + 1) * picture.rows // (2 * h), (2 * column + 1) * picture.columns // (2 * w)


def _span(middle: int, length: int) -> tuple[int, int]:
    """Place a part of `READ` pixels around a pixel, on the grid of `SIZE_STEP`, within the picture."""
    if length <= READ:
        return 0, length
    start = max(0, (middle - READ // 2) // SIZE_STEP * SIZE_STEP)
    start = min(start, length - READ)
    return start, start + READ
