"""Run a detector over image files: decoding beside computing, one row an image, memory independent of their number."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from queue import Queue
from typing import TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anomaly_cli.calibration import Calibration, Unit, q_values
from anomaly_cli.config import FlagRule, Rule
from anomaly_cli.detector import AnomalyDetector
from anomaly_cli.errors import UnreadableImageError
from anomaly_cli.images import LoadedImage, load_image
from anomaly_cli.quality import Quality, group_copies
from anomaly_cli.regions import hottest_region
from anomaly_cli.table import Row, rank_rows

AHEAD = 4  # images a worker may be ahead of the consumer; bounds memory
GPU_BATCH = 32  # images; one batch holds images of one size only

Item = TypeVar("Item")
Result = TypeVar("Result")
Progress = Callable[[str, int, int], None]  # phase, done, total


@dataclass(frozen=True)
class Measured:
    """One readable image after detection.

    Attributes:
        anomaly_map: (h, w) in units of the limit of normal.
        deviations: (E,) raw, for the calibration.
        height: of the file, pixels.
        width: of the file, pixels.
        pixels: (h', w', 3) RGB at network size.
        hottest: (L, 2) as in `Detection`.
        quality: where it was asked for.
    """

    anomaly_map: NDArray[np.float32]
    deviations: NDArray[np.float64]
    height: int
    width: int
    pixels: NDArray[np.uint8]
    hottest: NDArray[np.int64]
    quality: Quality | None = None


def to_tensor(image: LoadedImage) -> Tensor:
    """Convert to a (1, 3, h, w) float tensor in [0, 1]."""
    return torch.from_numpy(image.pixels).permute(2, 0, 1)[None].float().div_(255)


def worker_count() -> int:
    """Number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def parallel_map(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """Apply a function to items in threads and yield the results in order, only a few images ahead.

    Each thread runs torch on one core: several images at a time use the cores better than several cores on one
    image, and a result never depends on what was computed beside it.
    """
    with ThreadPoolExecutor(workers, "image", initializer=torch.set_num_threads, initargs=(1,)) as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > workers * AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def measure_images(
    detector: AnomalyDetector,
    map_unit: Unit,
    paths: list[Path],
    image_size: int,
    workers: int,
    device: torch.device,
    *,
    with_quality: bool = False,
) -> Iterator[Measured | UnreadableImageError]:
    """Measure each file, in order; a file that cannot be read yields its error instead."""

    def measure(path: Path) -> Measured | UnreadableImageError:
        loaded = _load(path, image_size, with_quality)
        return loaded if isinstance(loaded, UnreadableImageError) else measure_batch(detector, map_unit, [loaded])[0]

    if device.type == "cpu":
        return parallel_map(measure, paths, workers)
    return measure_in_batches([detector], map_unit, paths, image_size, workers, with_quality=with_quality)


def measure_on(
    devices: Sequence[torch.device],
    detector: AnomalyDetector,
    map_unit: Unit,
    paths: list[Path],
    image_size: int,
    workers: int,
    *,
    with_quality: bool = False,
) -> Iterator[Measured | UnreadableImageError]:
    """Measure each file, in order, on all the devices: the first holds the detector, the others get a copy."""
    if len(devices) == 1:
        return measure_images(detector, map_unit, paths, image_size, workers, devices[0], with_quality=with_quality)
    detectors = [detector, *(deepcopy(detector).to(device) for device in devices[1:])]
    return measure_in_batches(detectors, map_unit, paths, image_size, workers, with_quality=with_quality)


def measure_in_batches(
    detectors: Sequence[AnomalyDetector],
    map_unit: Unit,
    paths: list[Path],
    image_size: int,
    workers: int,
    *,
    with_quality: bool = False,
) -> Iterator[Measured | UnreadableImageError]:
    """Measure each file on accelerators, in order: a batch goes to whichever device is free.

    Args:
        detectors: the same one on each device. What a batch holds does not depend on their number.
        map_unit: of the anomaly maps.
        paths: files.
        image_size: pixels, as in `load_image`.
        workers: threads that read and resize.
        with_quality: whether to measure the quality, too.
    """
    free: Queue[AnomalyDetector] = Queue()
    for detector in detectors:
        free.put(detector)

    def measure(batch: list[LoadedImage | UnreadableImageError]) -> list[Measured | UnreadableImageError]:
        detector = free.get()
        try:
            return _measure_mixed(detector, map_unit, batch)
        finally:
            free.put(detector)

    loaded = parallel_map(lambda path: _load(path, image_size, with_quality), paths, workers)
    for results in parallel_map(measure, _batches(loaded), len(detectors)):
        yield from results


def _load(path: Path, image_size: int, with_quality: bool) -> LoadedImage | UnreadableImageError:
    try:
        return load_image(path, image_size, with_quality=with_quality)
    except UnreadableImageError as error:
        return error


def _batches(loaded: Iterator[Item]) -> Iterator[list[Item]]:
    batch: list[Item] = []
    for item in loaded:
        batch.append(item)
        if len(batch) == GPU_BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _measure_mixed(
    detector: AnomalyDetector, map_unit: Unit, batch: list[LoadedImage | UnreadableImageError]
) -> list[Measured | UnreadableImageError]:
    """Measure a batch on an accelerator, images of one size together, in the order given."""
    results: list[Measured | UnreadableImageError | None] = [None] * len(batch)
    by_size: dict[tuple[int, ...], list[int]] = {}
    for i, item in enumerate(batch):
        if isinstance(item, UnreadableImageError):
            results[i] = item
        else:
            by_size.setdefault(item.pixels.shape, []).append(i)
    for indices in by_size.values():
        images = [item for i in indices if isinstance(item := batch[i], LoadedImage)]
        for i, measured in zip(indices, measure_batch(detector, map_unit, images), strict=True):
            results[i] = measured
    return [result for result in results if result is not None]


@torch.inference_mode()
def measure_batch(detector: AnomalyDetector, map_unit: Unit, images: list[LoadedImage]) -> list[Measured]:
    """Measure images of one size together."""
    device = next(detector.buffers()).device
    detection = detector(torch.cat([to_tensor(image) for image in images]).to(device))
    maps = map_unit.apply(detection.anomaly_maps.cpu().numpy()).astype(np.float32)
    deviations = detection.deviations.cpu().double().numpy()
    hottest = cast(Tensor, detection.hottest).cpu().numpy()
    return [
        Measured(anomaly_map, each, image.height, image.width, image.pixels, hot, image.quality)
        for anomaly_map, each, hot, image in zip(maps, deviations, hottest, images, strict=True)
    ]


def to_row(path: Path, result: Measured | UnreadableImageError, calibration: Calibration) -> Row:
    """Make the table row of one file; p-value and flag follow when the whole run is known."""
    name = os.fspath(path)
    if isinstance(result, UnreadableImageError):
        return Row(path=name, status="unreadable", reason=result.reason)
    scores, scales = calibration.scores(result.deviations[None])
    region = hottest_region(result.anomaly_map, 1.0, result.height, result.width)
    row = Row(
        path=name,
        score=float(scores[0]),
        p_value=float(calibration.p_values(scores)[0]),
        width=result.width,
        height=result.height,
        region_x=region.x,
        region_y=region.y,
        region_w=region.width,
        region_h=region.height,
        region_fraction=region.fraction,
        scales=tuple(float(value) for value in scales[0, 1:]),
    )
    quality = result.quality
    if quality is None:
        return row
    return replace(
        row,
        aspect=quality.aspect,
        brightness=quality.brightness,
        contrast=quality.contrast,
        sharpness=quality.sharpness,
        content_hash=quality.content_hash,
        look=quality.look,
    )


def mark_copies(rows: list[Row]) -> list[Row]:
    """Number the groups of copies and near-copies among the rows that have their quality, in the order of paths."""
    marked = list(rows)
    places = sorted((i for i, row in enumerate(rows) if row.look), key=lambda i: os.fsencode(rows[i].path))
    hashes, looks = ([getattr(rows[i], name) for i in places] for name in ("content_hash", "look"))
    groups = group_copies(hashes, looks, [rows[i].brightness or 0.0 for i in places])
    for i, group in zip(places, groups.tolist(), strict=True):
        if group:
            marked[i] = replace(rows[i], duplicate_group=group)
    return marked


def flag_rows(rows: list[Row], rule: FlagRule) -> list[Row]:
    """Rank the rows, add q-values over the whole run and flag what the rule chooses."""
    ranked = rank_rows(rows)
    p = np.array([row.p_value for row in ranked if row.p_value is not None])
    chosen = []
    for place, (row, q) in enumerate(zip(ranked, q_values(p).tolist(), strict=False)):  # unreadable ones come last
        flagged = {
            Rule.FDR: q <= rule.value,
            Rule.THRESHOLD: (row.score or 0.0) >= rule.value,
            Rule.TOP: place < rule.value,
            # Of N images at most N are normal, and of these a share of at most p gets a p-value of p or less.
            Rule.MAX_FALSE_ALARMS: (row.p_value or 1.0) * len(p) <= rule.value,
        }[rule.kind]
        chosen.append(replace(row, q_value=q, flagged=flagged))
    return [*chosen, *ranked[len(p) :]]
