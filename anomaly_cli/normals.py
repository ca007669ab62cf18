"""Read the normal images once: which can be read, what they contain, and a sample of their cells a scale."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain, islice
from math import ceil, sqrt
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anomaly_cli.backbone import Backbone
from anomaly_cli.config import IMAGE_SIZE_STEP, MIN_IMAGE_SIZE, MIN_NORMALS, DetectorConfig
from anomaly_cli.detector import scale_features
from anomaly_cli.distributed import ALONE, Processes
from anomaly_cli.errors import InputError, UnreadableImageError
from anomaly_cli.images import load_image
from anomaly_cli.quality import Quality, group_copies
from anomaly_cli.saved_steps import Steps, pack, unpack
from anomaly_cli.scoring import Progress, parallel_map, to_tensor

CANDIDATE_CELLS = 40_000  # a scale; prototypes are chosen among them. Of more images as many give a cell each
SIZED_IMAGES = 100  # are looked at to learn how large the normal images are
BLOCK = 20  # images, whose results are saved together

Item = TypeVar("Item")


@dataclass(frozen=True)
class Run:
    """What every step of a training run needs.

    Attributes:
        config: settings.
        device: of this process.
        workers: threads that this process reads images with.
        progress: told about every step.
        processes: that share the work.
        saved: what a killed run had done.
    """

    config: DetectorConfig
    device: torch.device
    workers: int
    progress: Progress
    processes: Processes = ALONE
    saved: Steps = field(default_factory=Steps)

    def map_images(
        self, step: str, phase: str, function: Callable[[Item], Any], items: Sequence[Item]
    ) -> Iterator[Any]:
        """Apply a function to one item an image, in order; all processes share the work and get all results.

        Args:
            step: name under which finished blocks of results are saved; used once in a run.
            phase: for the progress.
            function: its results must be of the kind that `Steps.save` takes.
            items: the same in all processes.
        """
        blocks = [items[i : i + BLOCK] for i in range(0, len(items), BLOCK)]
        own = self._map_blocks(step, phase, function, self.processes.share(list(enumerate(blocks))))
        if self.processes.count == 1:
            yield from chain.from_iterable(own)
        else:  # packed, since pickling each of many small tensors takes several times as long
            for packed in self.processes.join([pack(results) for results in own]):
                yield from unpack(packed)

    def _map_blocks(
        self, step: str, phase: str, function: Callable[[Item], Any], blocks: Sequence[tuple[int, Sequence[Item]]]
    ) -> Iterator[list[Any]]:
        """Apply a function to numbered blocks of items, without those that are saved."""
        saved = {number: self.saved.load(f"{step}-{number:05}") for number, _ in blocks}
        missing = [block for number, block in blocks if saved[number] is None]
        total, done = sum(len(block) for _, block in blocks), 0
        self.saved.note_reuse(phase, sum(len(each) for each in saved.values() if each is not None), total)
        fresh = parallel_map(function, chain.from_iterable(missing), self.workers)
        for number, block in blocks:
            results = saved.pop(number)
            if results is None:
                results = []
                for result in islice(fresh, len(block)):
                    results.append(result)
                    self.progress(phase, done + len(results), total)
                self.saved.save(f"{step}-{number:05}", results)
            done += len(block)
            yield results


@dataclass(frozen=True)
class NormalSet:
    """The readable images of the training set.

    Attributes:
        paths: readable files, in path order; an image's number is its place here.
        unreadable: path and reason of the others.
        digest: SHA-256 over the SHA-256 of each readable file, in hexadecimal.
        copies: how many images are copies or near-copies of another.
        groups: (images,) copies of one number are held out together; 0 is no group.
    """

    paths: list[Path]
    unreadable: list[tuple[Path, str]]
    digest: str
    copies: int
    groups: NDArray[np.int64]

    @property
    def held_out_together(self) -> int:
        """How many images are in a group."""
        return int(np.count_nonzero(self.groups))


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


class _Sample(NamedTuple):
    """Cells of one image: (C, D) values and (C,) places."""

    values: Tensor
    places: Tensor


class _Reservoir:
    """Keep the samples of so many images, drawn evenly from a stream of any length.

    Every image draws a priority and the lowest stay, so that the choice depends on no thread and no order. It is even,
    not the cells farthest from the others, since these would be the anomalies among the normal images.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._kept: list[tuple[float, int, dict[str, _Sample]]] = []  # a heap, the highest priority first

    def wants(self, priority: float) -> bool:
        """Tell whether an image of this priority may stay; once it may not, it never will."""
        return len(self._kept) < self.size or priority < -self._kept[0][0]

    def add(self, priority: float, number: int, samples: dict[str, _Sample]) -> None:
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


def never_enlarging(config: DetectorConfig, paths: list[Path], workers: int) -> DetectorConfig:
    """Lower the image size to that of the median normal image: enlarging shows nothing and hides form."""

    def side(path: Path) -> float | None:
        try:
            image = load_image(path, MIN_IMAGE_SIZE)
        except UnreadableImageError:  # `sample_cells` reports it
            return None
        return sqrt(image.height * image.width)

    chosen = paths[:: ceil(len(paths) / SIZED_IMAGES)]
    sides = [each for each in parallel_map(side, chosen, workers) if each is not None]
    if not sides:
        return config
    enough = ceil(median(sides) / IMAGE_SIZE_STEP) * IMAGE_SIZE_STEP
    return replace(config, image_size=min(config.image_size, max(MIN_IMAGE_SIZE, enough)))


def sample_cells(
    paths: list[Path],
    backbone: Backbone,
    names: tuple[str, ...],
    run: Run,
    *,
    at_least: int = MIN_NORMALS,
) -> tuple[dict[str, Cells], NormalSet]:
    """Take the same number of random cells from every image, at most `CANDIDATE_CELLS` a scale in all.

    Of more than `CANDIDATE_CELLS` images a random choice of that many gives one cell a scale each; memory does not
    grow with the others, and most of them pass no network.

    Raises:
        InputError: fewer than `at_least` images can be read.
    """
    per_image = max(1, CANDIDATE_CELLS // max(1, len(paths)))
    priorities = np.random.default_rng(run.config.seed).random(len(paths)).tolist()
    reservoir = _Reservoir(CANDIDATE_CELLS)

    def sample(numbered: tuple[int, Path]) -> dict[str, Any]:
        number, path = numbered
        try:
            image = load_image(path, run.config.image_size, with_quality=True)
        except UnreadableImageError as error:
            return {"unreadable": error.reason}
        quality = asdict(cast(Quality, image.quality))
        if not reservoir.wants(priorities[number]):
            return {"quality": quality}
        seed = (run.config.seed * 1_000_003 + number) % 2**63
        with torch.inference_mode():
            features = scale_features(backbone, to_tensor(image).to(run.device), names)
        cells = {name: _random_cells(features[name], per_image, seed) for name in names}
        return {"cells": cells, "quality": quality}

    readable: list[Path] = []
    unreadable: list[tuple[Path, str]] = []
    qualities: list[Quality] = []
    results = run.map_images("normals", "reading normal images", sample, list(enumerate(paths)))
    for path, priority, result in zip(paths, priorities, results, strict=True):
        if "unreadable" in result:
            unreadable.append((path, result["unreadable"]))
            continue
        if "cells" in result:
            samples = {name: _Sample(*taken) for name, taken in result["cells"].items()}
            reservoir.add(priority, len(readable), samples)
        readable.append(path)
        qualities.append(Quality(**result["quality"]))
    if len(readable) < at_least:
        raise InputError(_too_few(readable, unreadable, at_least))
    cells = {name: reservoir.cells(name) for name in names}
    hashes = [quality.content_hash for quality in qualities]
    digest = hashlib.sha256(bytes.fromhex("".join(hashes))).hexdigest()
    groups = group_copies(hashes, [each.look for each in qualities], [each.brightness for each in qualities])
    return cells, NormalSet(readable, unreadable, digest, int(np.count_nonzero(groups)), _separable(groups))


def _separable(groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """Give up a group of more than half of the images: without it too few would be left to learn from."""
    sizes = np.bincount(groups, minlength=1)
    return np.where(2 * sizes[groups] > len(groups), 0, groups)


def _too_few(readable: list[Path], unreadable: list[tuple[Path, str]], at_least: int) -> str:
    also = f" ({len(unreadable)} cannot be read, first {unreadable[0][0]}: {unreadable[0][1]})" if unreadable else ""
    return (
        f"{len(readable)} readable normal images{also}, at least {at_least} are needed: "
        "each is measured against the others to learn how much normal images vary"
    )


def _random_cells(feature_map: Tensor, count: int, seed: int) -> _Sample:
    """Choose min(count, h*w) cells of one image's (1, D, h, w) map."""
    cells = feature_map[0].flatten(1).T  # (h*w, D)
    chosen = torch.randperm(len(cells), generator=torch.Generator().manual_seed(seed))[:count]
    return _Sample(cells[chosen.to(cells.device)].cpu(), chosen.clone())  # or the whole permutation would stay
