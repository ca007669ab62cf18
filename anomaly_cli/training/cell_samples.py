"""Random samples of the normal cells of each scale, in bounded memory."""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass
from operator import itemgetter
from typing import NamedTuple

import torch
from torch import Tensor

from anomaly_cli.detector.inspected import inspected_cells

CANDIDATE_CELLS = 40_000  # of each scale, among which prototypes are chosen; of more images so many give one each


class Origin(NamedTuple):
    """Where a prototype comes from: the index of its image, and of the cell in it (row-major)."""

    image: int
    cell: int


@dataclass(frozen=True)
class Cells:
    """Sampled raw cells of one scale.

    Attributes:
        values: (M, D).
        sources: (M,) index of the image of each cell.
        places: (M,) index of the cell in that image, row-major.
    """

    values: Tensor
    sources: Tensor
    places: Tensor

    @classmethod
    def of(cls, samples: Mapping[int, Sample]) -> Cells:
        """Concatenate the samples of images by their indices."""
        counts = torch.tensor([len(sample.places) for sample in samples.values()])
        sources = torch.tensor(list(samples)).repeat_interleave(counts)
        values = torch.cat([sample.values for sample in samples.values()])
        return cls(values, sources, torch.cat([sample.places for sample in samples.values()]))

    def joined(self, other: Cells) -> Cells:
        """Append the cells of the same scale of other samples of the images."""
        pairs = zip((self.values, self.sources, self.places), (other.values, other.sources, other.places), strict=True)
        return Cells(*(torch.cat(pair) for pair in pairs))

    def without(self, images: Tensor) -> Cells:
        """Leave out the cells of the images of these indices."""
        kept = ~torch.isin(self.sources, images)
        return Cells(self.values[kept], self.sources[kept], self.places[kept])

    def origins(self, chosen: Tensor) -> list[Origin]:
        """Return the origins of the cells of these (K,) indices."""
        pairs = zip(self.sources[chosen].tolist(), self.places[chosen].tolist(), strict=True)
        return [Origin(image, cell) for image, cell in pairs]


class Sample(NamedTuple):
    """Cells of one image: (C, D) values and (C,) places."""

    values: Tensor
    places: Tensor


class Reservoir:
    """Uniform sample of `size` images from a stream of any length, by random priorities.

    The images of lowest priority stay, so that the choice does not depend on threads or order. It is uniform and not a
    coreset, which would prefer the anomalies among the normal images.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._kept: list[tuple[float, int, dict[str, Sample]]] = []  # a heap, the highest priority first

    def wants(self, priority: float) -> bool:
        """Whether an image of this priority enters; once false, it stays false."""
        return len(self._kept) < self.size or priority < -self._kept[0][0]

    def add(self, priority: float, number: int, samples: dict[str, Sample]) -> None:
        """Keep the samples of an image if its priority is low enough, instead of another where this is full."""
        if len(self._kept) < self.size:
            heapq.heappush(self._kept, (-priority, number, samples))
        elif self.wants(priority):
            heapq.heapreplace(self._kept, (-priority, number, samples))

    def cells(self, name: str) -> Cells:
        """Concatenate the cells of one scale in the order of the images."""
        return Cells.of({number: samples[name] for _, number, samples in sorted(self._kept, key=itemgetter(1))})


def random_cells(feature_map: Tensor, count: int, seed: int, inspected: Tensor | None = None) -> Sample:
    """Choose at most `count` cells of one image's (1, D, h, w) map, of those in its (1, H, W) region of interest."""
    cells = feature_map[0].flatten(1).T  # (h*w, D)
    chosen = torch.randperm(len(cells), generator=torch.Generator().manual_seed(seed))
    if inspected is not None:
        chosen = chosen[inspected_cells(inspected, *feature_map.shape[2:]).flatten().cpu()[chosen]]
    chosen = chosen[:count].clone()  # else the whole permutation stays in memory
    return Sample(cells[chosen.to(cells.device)].cpu(), chosen)
