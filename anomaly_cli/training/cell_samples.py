"""Random samples of normal cells a scale, in bounded memory."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Origin(NamedTuple):
    """Where a prototype comes from: a cell, counted row by row, of the image of this number."""

    image: int
    cell: int


@dataclass(frozen=True)
class Cells:
    """Sampled raw cells of one scale.

    Attributes:
        values: (M, D).
        sources: (M,) number of the image each was taken from.
        places: (M,) which cell of that image it is, counted row by row.
    """

    values: Tensor
    sources: Tensor
    places: Tensor

    def without(self, images: Tensor) -> Cells:
        """Leave out the cells of the images of these numbers."""
        kept = ~torch.isin(self.sources, images)
        return Cells(self.values[kept], self.sources[kept], self.places[kept])

    def origins(self, chosen: Tensor) -> list[Origin]:
        """Tell where the cells of these (K,) numbers come from."""
        pairs = zip(self.sources[chosen].tolist(), self.places[chosen].tolist(), strict=True)
        return [Origin(image, cell) for image, cell in pairs]


class Sample(NamedTuple):
    """Cells of one image: (C, D) values and (C,) places."""

    values: Tensor
    places: Tensor


class Reservoir:
    """Keep the samples of so many images, drawn evenly from a stream of any length.

    Every image draws a priority and the lowest stay, so that the choice depends on no thread and no order. It is even,
    not the cells farthest from the others, since these would be the anomalies among the normal images.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._kept: list[tuple[float, int, dict[str, Sample]]] = []  # a heap, the highest priority first

    def wants(self, priority: float) -> bool:
        """Tell whether an image of this priority may stay; once it may not, it never will."""
        return len(self._kept) < self.size or priority < -self._kept[0][0]

    def add(self, priority: float, number: int, samples: dict[str, Sample]) -> None:
        """Keep the samples of the image of this number if it may stay, in the place of another where it is full."""
        if len(self._kept) < self.size:
            heapq.heappush(self._kept, (-priority, number, samples))
        elif self.wants(priority):
            heapq.heapreplace(self._kept, (-priority, number, samples))

    def cells(self, name: str) -> Cells:
        """Join the cells of one scale in the order of the images."""
        kept = sorted((number, samples[name]) for _, number, samples in self._kept)
        counts = torch.tensor([len(sample.places) for _, sample in kept])
        sources = torch.tensor([number for number, _ in kept]).repeat_interleave(counts)
        values = torch.cat([sample.values for _, sample in kept])
        return Cells(values, sources, torch.cat([sample.places for _, sample in kept]))


def random_cells(feature_map: Tensor, count: int, seed: int) -> Sample:
    """Choose min(count, h*w) cells of one image's (1, D, h, w) map."""
    cells = feature_map[0].flatten(1).T  # (h*w, D)
    chosen = torch.randperm(len(cells), generator=torch.Generator().manual_seed(seed))[:count]
    return Sample(cells[chosen.to(cells.device)].cpu(), chosen.clone())  # or the whole permutation would stay
