"""Read the normal images once: which are readable, their contents, and a sample of the cells of each scale."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, replace
from math import ceil, sqrt
from pathlib import Path
from statistics import median
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from anomaly_cli.config import IMAGE_SIZE_STEP, MIN_IMAGE_SIZE, MIN_NORMALS, DetectorConfig
from anomaly_cli.detector.backbones.backbone import SCRATCH, Backbone
from anomaly_cli.detector.features import scale_features
from anomaly_cli.detector.scales import SMALL_SIDE, TURNED_SIDE, is_local
from anomaly_cli.errors import InputError, UnreadableImageError
from anomaly_cli.images.decode import LoadedImage, load_image, read_deep_gray
from anomaly_cli.images.duplicates import group_near_duplicates
from anomaly_cli.images.quality import Quality
from anomaly_cli.scoring.parallel import parallel_map
from anomaly_cli.scoring.pixels import inspected_tensor, to_tensor
from anomaly_cli.training.cell_samples import CANDIDATE_CELLS, Cells, Reservoir, Sample, random_cells
from anomaly_cli.training.run import TrainingContext
from anomaly_cli.training.tiled_samples import sample_tiles

WINDOW_PERCENTILES = (0.1, 99.9)
WINDOW_IMAGES, WINDOW_VALUES = 2000, 2**25  # at most so many are read for the intensity window
SIZED_IMAGES = 100  # whose median size stands for that of all


@dataclass(frozen=True)
class NormalSet:
    """The readable images of the training set.

    Attributes:
        paths: readable files, in path order; indices of images refer to this list.
        unreadable: path and reason of the others.
        digest: SHA-256 over the SHA-256 of each readable file, in hexadecimal.
        copies: number of images that have a near-duplicate.
        groups: (images,) near-duplicates have the same number > 0 and are held out together; 0 is no group.
    """

    paths: list[Path]
    unreadable: list[tuple[Path, str]]
    digest: str
    copies: int
    groups: NDArray[np.int64]

    @classmethod
    def of(cls, paths: list[Path], unreadable: list[tuple[Path, str]], qualities: list[Quality]) -> NormalSet:
        """Hash and group the readable images by their qualities, one for each path."""
        hashes = [each.content_hash for each in qualities]
        digest = hashlib.sha256(bytes.fromhex("".join(hashes))).hexdigest()
        perceptual, brightness = [each.perceptual_hash for each in qualities], [each.brightness for each in qualities]
        groups = group_near_duplicates(hashes, perceptual, brightness)
        return cls(paths, unreadable, digest, int(np.count_nonzero(groups)), _separable(groups))

    @property
    def held_out_together(self) -> int:
        """Number of images in a group."""
        return int(np.count_nonzero(self.groups))


def limit_image_size(config: DetectorConfig, paths: list[Path], workers: int) -> DetectorConfig:
    """Limit the image size to that of the median normal image; smaller ones are enlarged to at most `SMALL_SIDE`.

    At most to twice their side, since in files that are enlarged more an object is larger than the network knows it.
    `scratch` enlarges to `TURNED_SIDE` only, and learns from four times as many.
    """

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
    enlarged = TURNED_SIDE if config.backbone == SCRATCH else min(SMALL_SIDE, 2 * enough)
    return replace(config, image_size=min(config.image_size, max(enough, enlarged)))


def choose_window(config: DetectorConfig, paths: list[Path], workers: int) -> DetectorConfig:
    """Replace the intensity window "auto" by percentiles of the deep grey normal images.

    Raises:
        InputError: there is none, or all its pixels are alike.
    """
    if config.intensity_window != "auto":
        return config
    chosen = paths[:: ceil(len(paths) / WINDOW_IMAGES)]

    def some_values(path: Path) -> NDArray[np.float64] | None:
        try:
            values = read_deep_gray(path)
        except UnreadableImageError:  # `sample_cells` reports it
            return None
        if values is None:
            return None
        finite = values[np.isfinite(values)]
        sample: NDArray[np.float64] = finite[:: ceil(max(1, finite.size * len(chosen)) / WINDOW_VALUES)].astype(
            np.float64
        )
        return sample

    found = [each for each in parallel_map(some_values, chosen, workers) if each is not None and each.size]
    if not found:
        raise InputError("--intensity-window auto: no normal image is grey of more than 8 bit")
    low, high = np.percentile(np.concatenate(found), WINDOW_PERCENTILES).tolist()
    if low == high:
        raise InputError("--intensity-window auto: the normal images have one value only")
    return replace(config, intensity_window=(low, high))


def sample_cells(
    paths: list[Path],
    backbone: Backbone,
    names: tuple[str, ...],
    run: TrainingContext,
    *,
    at_least: int = MIN_NORMALS,
) -> tuple[dict[str, Cells], NormalSet]:
    """Sample the same number of random cells of every image, at most `CANDIDATE_CELLS` of each scale in all.

    Of more images than that a random sample gives one cell of each scale; the others cost no memory.

    Raises:
        InputError: fewer than `at_least` images can be read.
    """
    per_image = max(1, CANDIDATE_CELLS // max(1, len(paths)))
    priorities = np.random.default_rng(run.config.seed).random(len(paths)).tolist()
    reservoir = Reservoir(CANDIDATE_CELLS)

    def sample(numbered: tuple[int, Path]) -> dict[str, Any]:
        number, path = numbered
        try:
            image = run.load(path, with_quality=True)
        except UnreadableImageError as error:
            return {"unreadable": error.reason}
        quality = asdict(cast(Quality, image.quality))
        if not reservoir.wants(priorities[number]):
            return {"quality": quality}
        seed = (run.config.seed * 1_000_003 + number) % 2**63
        cells = _sample_image(image, backbone, names, per_image, seed, run)
        return {"cells": {name: tuple(cells[name]) for name in names}, "quality": quality}

    readable: list[Path] = []
    unreadable: list[tuple[Path, str]] = []
    qualities: list[Quality] = []
    results = run.map_images("normals", "reading normal images", sample, list(enumerate(paths)))
    for path, priority, result in zip(paths, priorities, results, strict=True):
        if "unreadable" in result:
            unreadable.append((path, result["unreadable"]))
            continue
        if "cells" in result:
            samples = {name: Sample(*taken) for name, taken in result["cells"].items()}
            reservoir.add(priority, len(readable), samples)
        readable.append(path)
        qualities.append(Quality(**result["quality"]))
    if len(readable) < at_least:
        raise InputError(_too_few(readable, unreadable, at_least))
    return {name: reservoir.cells(name) for name in names}, NormalSet.of(readable, unreadable, qualities)


def _sample_image(
    image: LoadedImage, backbone: Backbone, names: tuple[str, ...], count: int, seed: int, run: TrainingContext
) -> dict[str, Sample]:
    """Choose random cells of each scale of one image; those of local scales from its tiles, if it has a picture."""
    whole = names if image.picture is None else tuple(name for name in names if not is_local(name))
    with torch.inference_mode():
        inspected = inspected_tensor([image], run.device)
        features = scale_features(backbone, to_tensor(image).to(run.device), whole, inspected=inspected)
    cells = {name: random_cells(features[name], count, seed, inspected) for name in whole}
    if image.picture is not None:
        local = tuple(name for name in names if is_local(name))
        cells |= sample_tiles(backbone, image.picture, local, count, seed, run)
    return cells


def _separable(groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """Ignore a group of more than half of the images: the rest would be too few to fit a detector."""
    sizes = np.bincount(groups, minlength=1)
    return np.where(2 * sizes[groups] > len(groups), 0, groups)


def _too_few(readable: list[Path], unreadable: list[tuple[Path, str]], at_least: int) -> str:
    also = f" ({len(unreadable)} cannot be read, first {unreadable[0][0]}: {unreadable[0][1]})" if unreadable else ""
    return (
        f"{len(readable)} readable image{'' if len(readable) == 1 else 's'}{also}, at least {at_least} are needed: "
        "each is measured against the others to learn how much they vary"
    )
