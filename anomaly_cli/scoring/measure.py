"""Run a detector over image files: decoding in parallel with the network, memory independent of the number of files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from queue import Queue
from typing import TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anomaly_cli.detector.anomaly_detector import AnomalyDetector
from anomaly_cli.detector.calibration import ScoreScale
from anomaly_cli.errors import UnreadableImageError
from anomaly_cli.images.decode import LoadedImage, load_image
from anomaly_cli.images.quality import Quality
from anomaly_cli.scoring.parallel import parallel_map

Item = TypeVar("Item")


GPU_BATCH = 32  # images; one batch holds images of one size only


@dataclass(frozen=True)
class Measured:
    """One readable image after detection.

    Attributes:
        anomaly_map: (h, w) in units of the limit of normal.
        deviations: (E,) raw, for the calibration.
        height: of the file, pixels.
        width: of the file, pixels.
        pixels: (h', w', 3) RGB at network size.
        peak_cells: (L, 2) as in `Detection`.
        quality: where it was asked for.
    """

    anomaly_map: NDArray[np.float32]
    deviations: NDArray[np.float64]
    height: int
    width: int
    pixels: NDArray[np.uint8]
    peak_cells: NDArray[np.int64]
    quality: Quality | None = None


def to_tensor(image: LoadedImage) -> Tensor:
    """Convert to a (1, 3, h, w) float tensor in [0, 1]."""
    return torch.from_numpy(image.pixels).permute(2, 0, 1)[None].float().div_(255)


def measure_images(
    detector: AnomalyDetector,
    map_scale: ScoreScale,
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
        return loaded if isinstance(loaded, UnreadableImageError) else measure_batch(detector, map_scale, [loaded])[0]

    if device.type == "cpu":
        return parallel_map(measure, paths, workers)
    return measure_in_batches([detector], map_scale, paths, image_size, workers, with_quality=with_quality)


def measure_on(
    devices: Sequence[torch.device],
    detector: AnomalyDetector,
    map_scale: ScoreScale,
    paths: list[Path],
    image_size: int,
    workers: int,
    *,
    with_quality: bool = False,
) -> Iterator[Measured | UnreadableImageError]:
    """Measure each file, in order, on all the devices: the first holds the detector, the others get a copy."""
    if len(devices) == 1:
        return measure_images(detector, map_scale, paths, image_size, workers, devices[0], with_quality=with_quality)
    detectors = [detector, *(deepcopy(detector).to(device) for device in devices[1:])]
    return measure_in_batches(detectors, map_scale, paths, image_size, workers, with_quality=with_quality)


def measure_in_batches(
    detectors: Sequence[AnomalyDetector],
    map_scale: ScoreScale,
    paths: list[Path],
    image_size: int,
    workers: int,
    *,
    with_quality: bool = False,
) -> Iterator[Measured | UnreadableImageError]:
    """Measure each file on accelerators, in order: a batch goes to whichever device is free.

    Args:
        detectors: the same one on each device. What a batch holds does not depend on their number.
        map_scale: of the anomaly maps.
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
            return _measure_mixed(detector, map_scale, batch)
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
    detector: AnomalyDetector, map_scale: ScoreScale, batch: list[LoadedImage | UnreadableImageError]
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
        for i, measured in zip(indices, measure_batch(detector, map_scale, images), strict=True):
            results[i] = measured
    return [result for result in results if result is not None]


@torch.inference_mode()
def measure_batch(detector: AnomalyDetector, map_scale: ScoreScale, images: list[LoadedImage]) -> list[Measured]:
    """Measure images of one size together."""
    device = next(detector.buffers()).device
    detection = detector(torch.cat([to_tensor(image) for image in images]).to(device))
    maps = map_scale.apply(detection.anomaly_maps.cpu().numpy()).astype(np.float32)
    deviations = detection.deviations.cpu().double().numpy()
    peak_cells = cast(Tensor, detection.peak_cells).cpu().numpy()
    return [
        Measured(anomaly_map, each, image.height, image.width, image.pixels, cells, image.quality)
        for anomaly_map, each, cells, image in zip(maps, deviations, peak_cells, images, strict=True)
    ]
