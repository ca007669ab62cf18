"""Run a detector over image files: decoding in parallel with the network, memory independent of the number of files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from queue import Queue
from typing import TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anomaly_cli.config import DEFAULT_REGIONS, RegionRule, RoiKind
from anomaly_cli.detector.anomaly_detector import AnomalyDetector, Detection
from anomaly_cli.detector.calibration import Calibration, ScoreScale
from anomaly_cli.detector.checkpoint import Model
from anomaly_cli.detector.prototype_patches import patch_box
from anomaly_cli.errors import ConfigError, UnreadableImageError
from anomaly_cli.images.decode import LoadedImage
from anomaly_cli.images.quality import Quality
from anomaly_cli.images.roi import Roi, SharedRoi, open_roi
from anomaly_cli.scoring.explained_map import RegionSource, explain_map
from anomaly_cli.scoring.parallel import parallel_map, worker_count
from anomaly_cli.scoring.pixels import inspected_tensor, read_image, to_tensor
from anomaly_cli.scoring.tiled import stitched_maps, whole_maps

Item = TypeVar("Item")

GPU_BATCH = 32  # images; one batch holds images of one size only


@dataclass(frozen=True)
class Measured:
    """One readable image after detection.

    Attributes:
        anomaly_map: (h, w) in units of the limit of normal; its largest value is at least the score of the image.
            0 where cells are ignored.
        deviations: (E,) raw, for the calibration.
        height: of the file, pixels.
        width: of the file, pixels.
        pixels: (h', w', 3) RGB at network size.
        peak_cells: (L, 2) as in `Detection`.
        region_from: what places the peak of the map.
        top_scales: (h, w) for each cell of the map the index in `scale_names` of the scale that adds most to it.
        scale_names: of the detector.
        quality: where it was asked for.
        inspected: (h', w') pixels in the region of interest; None where all are.
        peak_pixels: with tiles for each of the L local scales the surroundings of its peak cell, (c, c, 3).
    """

    anomaly_map: NDArray[np.float32]
    deviations: NDArray[np.float64]
    height: int
    width: int
    pixels: NDArray[np.uint8]
    peak_cells: NDArray[np.int64]
    region_from: RegionSource
    top_scales: NDArray[np.uint8]
    scale_names: tuple[str, ...]
    quality: Quality | None = None
    inspected: NDArray[np.bool_] | None = None
    peak_pixels: list[NDArray[np.uint8]] | None = None


Outcome = Measured | UnreadableImageError


def kept_roi(model: Model) -> Roi | None:
    """Return the region of interest that a model keeps, if it does.

    Raises:
        ConfigError: it was trained with one a file.
    """
    if model.config.roi is RoiKind.BY_NAME:
        raise ConfigError("the model was trained with one mask a file: name the folder of those of new images by --roi")
    return None if model.roi is None else SharedRoi(model.roi, "of the model")


def choose_roi(model: Model, path: Path | None, images: list[Path] | None = None) -> Roi | None:
    """Open the region of interest of `--roi`, or return that of the model where it is not given.

    Raises:
        ConfigError: it cannot be used, one of the images has no mask, or the model was trained on whole images.
    """
    if path is None:
        return kept_roi(model)
    if model.config.roi is None:
        raise ConfigError(
            "--roi: the model was trained on whole images, whose limit is not that of a part: train it with --roi"
        )
    roi = open_roi(path)
    roi.check_names(images or [])
    return roi


@torch.inference_mode()
def measure_batch(
    detector: AnomalyDetector, calibration: Calibration, map_scale: ScoreScale, images: list[LoadedImage]
) -> list[Measured]:
    """Measure images of one size together."""
    device = next(detector.buffers()).device
    batch = torch.cat([to_tensor(image) for image in images]).to(device)
    detection = detector(batch, inspected_tensor(images, device))
    return _explained(detector, calibration, map_scale, detection, images)


def measure_image(
    detector: AnomalyDetector, calibration: Calibration, map_scale: ScoreScale, image: LoadedImage, *, workers: int
) -> Measured:
    """Measure one image, in tiles where it has a picture: with so many workers."""
    if image.picture is None:
        return measure_batch(detector, calibration, map_scale, [image])[0]
    picture, device = image.picture, next(detector.buffers()).device
    stitched = stitched_maps(detector, picture, workers)
    detection = detector.combine([*(each.to(device) for each in stitched.maps), *whole_maps(detector, image)])
    detection = detection._replace(peak_cells=stitched.peak_cells)
    (measured,) = _explained(detector, calibration, map_scale, detection, [image])
    cells = zip(detector.local_names, measured.peak_cells[:, 0].tolist(), strict=True)
    size = picture.rows, picture.columns
    boxes = [patch_box(*size, detector.cell_step(name, *size), cell) for name, cell in cells]
    parts = [picture.read(top, left, bottom - top, right - left) for left, top, right, bottom in boxes]
    return replace(measured, peak_pixels=parts)


def _explained(
    detector: AnomalyDetector,
    calibration: Calibration,
    map_scale: ScoreScale,
    detection: Detection,
    images: list[LoadedImage],
) -> list[Measured]:
    """Bring the detection of a batch into the unit of the limit of normal, with maps that explain the scores."""
    maps = np.nan_to_num(map_scale.apply(detection.anomaly_maps.cpu().numpy())).astype(np.float32)
    deviations = detection.deviations.cpu().double().numpy()
    peak_cells = cast(Tensor, detection.peak_cells).cpu().numpy()
    top_scales = cast(Tensor, detection.top_scales).cpu().numpy()
    measured = []
    for i, image in enumerate(images):
        explained, pooled = explain_map(detector, calibration, image, maps[i], deviations[i])
        if pooled is not None:
            top_scales[i, explained > maps[i]] = detector.scale_names.index(pooled)
        measured.append(
            Measured(
                anomaly_map=explained,
                deviations=deviations[i],
                height=image.height,
                width=image.width,
                pixels=image.pixels,
                peak_cells=peak_cells[i],
                region_from=RegionSource.MAP if pooled is None else RegionSource.IMAGE,
                top_scales=top_scales[i],
                scale_names=detector.scale_names,
                quality=image.quality,
                inspected=image.inspected,
            )
        )
    return measured


class Scorer:
    """A model on the devices of this machine: measures files in order, in memory independent of their number.

    Attributes:
        model: on the first device.
        region_rule: what rows are to hold of the regions.
    """

    def __init__(
        self,
        model: Model,
        devices: Sequence[torch.device],
        *,
        roi: Roi | None = None,
        with_quality: bool = False,
        workers: int | None = None,
        region_rule: RegionRule = DEFAULT_REGIONS,
    ) -> None:
        """Copy the detector to the other devices.

        Args:
            model: on the first device.
            devices: on accelerators, batches of images go to whichever device is free; what a batch holds does not
                depend on their number. A single CPU measures one image per thread.
            roi: region of interest, where it is not that of the model.
            with_quality: whether to measure the quality, too.
            workers: threads that read and resize, on a CPU also measure; by default one per core.
            region_rule: for `measure_rows`.
        """
        self.model, self.region_rule = model, region_rule
        self._roi = kept_roi(model) if roi is None else roi
        self._with_quality = with_quality
        self._workers = workers or worker_count()
        self._in_batches = len(devices) > 1 or devices[0].type != "cpu"
        self._count = len(devices)
        self._free: Queue[AnomalyDetector] = Queue()  # detectors that compute nothing at the moment
        for detector in (model.detector, *(deepcopy(model.detector).to(device) for device in devices[1:])):
            self._free.put(detector)

    def measure(self, paths: Iterable[Path]) -> Iterator[Outcome]:
        """Measure each file, in order; a file that cannot be read yields its error instead."""
        if self.model.config.smallest_defect is not None:
            return map(self.measure_one, paths)  # one picture in memory; its tiles are measured in parallel
        if not self._in_batches:
            return parallel_map(self.measure_one, paths, self._workers)
        batches = _batches(parallel_map(self._load, paths, self._workers))
        return chain.from_iterable(parallel_map(self._measure_batch, batches, self._count))

    def measure_one(self, path: Path) -> Outcome:
        """Measure one file in this thread."""
        loaded = self._load(path)
        if isinstance(loaded, UnreadableImageError):
            return loaded
        model = self.model
        return measure_image(model.detector, model.calibration, model.map_scale, loaded, workers=self._workers)

    def _load(self, path: Path) -> LoadedImage | UnreadableImageError:
        try:
            return read_image(path, self.model.config, self._roi, with_quality=self._with_quality)
        except UnreadableImageError as error:
            return error

    def _measure_batch(self, batch: list[LoadedImage | UnreadableImageError]) -> list[Outcome]:
        """Measure a batch on a free device, images of one size together, in the order given."""
        results: dict[int, Outcome] = {}
        by_size: dict[tuple[int, ...], dict[int, LoadedImage]] = {}
        for i, item in enumerate(batch):
            if isinstance(item, UnreadableImageError):
                results[i] = item
            else:
                by_size.setdefault(item.pixels.shape, {})[i] = item
        detector = self._free.get()
        try:
            for images in by_size.values():
                measured = measure_batch(detector, self.model.calibration, self.model.map_scale, list(images.values()))
                results.update(zip(images, measured, strict=True))
        finally:
            self._free.put(detector)
        return [results[i] for i in range(len(batch))]


def _batches(loaded: Iterator[Item]) -> Iterator[list[Item]]:
    batch: list[Item] = []
    for item in loaded:
        batch.append(item)
        if len(batch) == GPU_BATCH:
            yield batch
            batch = []
    if batch:
        yield batch
