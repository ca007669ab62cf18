"""Learn a detector from normal images: memories, learned parts and held-out calibration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anomaly_cli.augment import synthetic_anomaly
from anomaly_cli.backbone import SCRATCH, Backbone
from anomaly_cli.calibration import Calibration, Unit
from anomaly_cli.compact_resnet import CompactResNet
from anomaly_cli.config import Effort
from anomaly_cli.contrast import Schedule, learn_backbone, learn_projection
from anomaly_cli.detector import IMAGE_SCALE, AnomalyDetector, ScaleModel
from anomaly_cli.distance_head import HeadData, HeadWeights, learn_head
from anomaly_cli.errors import InputError, UnreadableImageError
from anomaly_cli.images import LoadedImage, load_image
from anomaly_cli.memory import PrototypeMemory, Whitening, select_coreset
from anomaly_cli.normals import Cells, NormalSet, Run, sample_cells
from anomaly_cli.scoring import parallel_map, to_tensor

LOCAL_STRIDES = (8, 16)  # finer ones have most cells and rank worst, coarser ones add nothing (docs/method.md)
CALIBRATION_IMAGES = 1_000  # at most so many normal images are measured as if unseen
FOLDS = 5
FEW_IMAGES = 50  # below, a fifth is too much to leave out
FOLDS_OF_FEW = 10
CELL_SAMPLE = 200_000  # distances a scale that location and spread are taken from
SCRATCH_IMAGES = 1_000  # at most so many are kept in memory while `scratch` learns its backbone
SCRATCH_STEPS = {Effort.QUICK: 60, Effort.STANDARD: 200, Effort.THOROUGH: 3_000}
PROJECTION_STEPS = 300


@dataclass(frozen=True)
class TrainedDetector:
    """A detector with everything that turns its measurements into a table.

    Attributes:
        anomalies: labelled anomalous images that could be read.
        head_gain: what stage 2 gained over the plain distance, 0 if it is off.
    """

    detector: AnomalyDetector
    calibration: Calibration
    map_unit: Unit
    normals: NormalSet
    anomalies: int
    head_gain: float


@dataclass(frozen=True)
class HeldOut:
    """An image to be measured by the detector of the fold that has not seen it."""

    fold: int
    path: Path
    synthetic_seed: int | None = None  # change the image with this seed first
    other: Path | None = None  # normal image that the change takes patches from


def train_detector(paths: list[Path], anomalies: list[Path], backbone: Backbone, run: Run) -> TrainedDetector:
    """Learn what the images at `paths` have in common.

    The images are dealt into folds. Each fold is measured by a detector that learned from the others only, and
    from these held-out measurements every unit is set; the detector that is kept learned from all images.

    Args:
        paths: normal images.
        anomalies: known anomalous images; they shape the features of `scratch` and the distance, never a memory.
        backbone: with its starting weights; `scratch` is trained in place.
        run: settings and machine.

    Raises:
        InputError: fewer than `MIN_NORMALS` images can be read.
    """
    backbone = backbone.to(run.device)
    names = (*_local_names(backbone), IMAGE_SCALE)
    if backbone.name == SCRATCH:
        _learn_from_scratch(backbone, names, paths, anomalies, run)
    views = 2 if _projects(backbone, run) else 1
    cells, normals = sample_cells(paths, backbone, names, views, run)
    folds = deal_folds(len(normals.paths), run.config.seed)
    learned = learn_scales(cells, folds, run)
    detectors = [AnomalyDetector(backbone, scales).to(run.device).eval() for scales in learned]
    step = max(1, -(-len(normals.paths) // CALIBRATION_IMAGES))
    held_out = [HeldOut(fold, path) for fold, path in list(zip(folds.tolist(), normals.paths, strict=True))[::step]]
    measured = measure_held_out(detectors, held_out, run)
    set_cell_statistics(detectors, measured, run.config.seed)
    readable = _readable(anomalies, run)
    head = _learn_head(detectors, held_out, readable, run)
    if head.gain:
        for detector in detectors:
            for name, channels in zip(names, head.channels, strict=True):
                detector.scale(name).channel_weights.copy_(channels)
            for name, weight in zip(names, head.scales, strict=True):
                detector.scale(name).weight.copy_(weight)
        measured = measure_held_out(detectors, held_out, run)
        set_cell_statistics(detectors, measured, run.config.seed)
    calibration, map_unit = calibrate(detectors[0], measured)
    return TrainedDetector(detectors[0], calibration, map_unit, normals, len(readable), head.gain)


def _local_names(backbone: Backbone) -> list[str]:
    strides = [stride for stride in backbone.strides if stride in LOCAL_STRIDES] or [backbone.strides[-1]]
    return [str(stride) for stride in strides]


def _projects(backbone: Backbone, run: Run) -> bool:
    """Whether stage 1 learns a projection a scale: where time allows, on a backbone that is not trained itself."""
    return run.config.effort is Effort.THOROUGH and backbone.name != SCRATCH


def _readable(paths: list[Path], run: Run) -> list[Path]:
    def check(path: Path) -> bool:
        try:
            load_image(path, run.config.image_size)
        except UnreadableImageError:
            return False
        return True

    return [path for path, good in zip(paths, parallel_map(check, paths, run.workers), strict=True) if good]


def _learn_from_scratch(
    backbone: Backbone, names: tuple[str, ...], paths: list[Path], anomalies: list[Path], run: Run
) -> None:
    """Train the random backbone with stage 1 on the normal images and the labelled anomalies."""
    chosen = [*paths[:: max(1, -(-len(paths) // SCRATCH_IMAGES))], *anomalies[:SCRATCH_IMAGES]]
    known = {*anomalies}

    def load(path: Path) -> NDArray[np.uint8] | None:
        try:
            return load_image(path, run.config.image_size).pixels
        except UnreadableImageError:
            return None  # named by `sample_cells`, which reads every image

    loaded = [(path, pixels) for path, pixels in zip(chosen, parallel_map(load, chosen, run.workers), strict=True)]
    images = [pixels for _, pixels in loaded if pixels is not None]
    normal = torch.tensor([path not in known for path, pixels in loaded if pixels is not None], dtype=torch.bool)
    if images:  # where there are none, `sample_cells` says what is wrong
        schedule = Schedule(SCRATCH_STEPS[run.config.effort], max(64, run.config.image_size // 2 // 32 * 32))
        learn_backbone(backbone, names, images, normal, schedule, run.config.seed, run.progress)
    cast(CompactResNet, backbone.network).fuse()


def deal_folds(count: int, seed: int) -> Tensor:
    """Assign each of (count,) images a fold; there are more folds when images are few."""
    folds = FOLDS if count >= FEW_IMAGES else min(count, FOLDS_OF_FEW)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    fold = torch.empty(count, dtype=torch.int64)
    fold[order] = torch.arange(count) % folds
    return fold


def learn_scales(cells: dict[str, Cells], folds: Tensor, run: Run) -> list[dict[str, ScaleModel]]:
    """Learn every scale once from all images and once without each fold: entry 0, then one a fold."""
    left_out = [None, *range(int(folds.max()) + 1)]
    jobs = [(fold, name) for fold in left_out for name in cells]

    def learn(job: tuple[int | None, str]) -> ScaleModel:
        fold, name = job
        kept = torch.ones(len(folds), dtype=torch.bool) if fold is None else folds != fold
        return learn_scale(cells[name].values[kept[cells[name].sources]].to(run.device), run)

    learned: list[dict[str, ScaleModel]] = [{} for _ in left_out]
    scales = parallel_map(learn, jobs, run.workers)
    for done, ((fold, name), scale) in enumerate(zip(jobs, scales, strict=True), start=1):
        learned[0 if fold is None else fold + 1][name] = scale
        run.progress("choosing prototypes", done, len(jobs))
    return learned


def learn_scale(cells: Tensor, run: Run) -> ScaleModel:
    """Fit one scale on (M, V, D) normal cells: whitening, stage 1 where there are two views, memory.

    The prototypes are a coreset of the embeddings as they are after stage 1, so every one is a real normal cell.
    """
    whitening = Whitening.fit(cells[:, 0])
    projection = None
    if cells.shape[1] > 1:
        projection = learn_projection(whitening(cells), Schedule(PROJECTION_STEPS, 0), run.config.seed)
    scale = ScaleModel(whitening, projection).to(cells.device)
    embeddings = scale.embed(cells[:, 0])
    chosen = select_coreset(embeddings, run.config.prototypes, torch.Generator().manual_seed(run.config.seed))
    scale.memory = PrototypeMemory(embeddings[chosen.to(cells.device)])
    return scale


def _load(item: HeldOut, run: Run) -> Tensor:
    """Read one image, changed where a synthetic anomaly is wanted: (1, 3, h, w)."""
    image = _load_again(item.path, run)
    if item.synthetic_seed is not None and item.other is not None:
        other = _load_again(item.other, run)
        changed = synthetic_anomaly(image.pixels, other.pixels, np.random.default_rng(item.synthetic_seed))
        image = LoadedImage(changed.pixels, image.height, image.width)
    return to_tensor(image).to(run.device)


def _load_again(path: Path, run: Run) -> LoadedImage:
    try:
        return load_image(path, run.config.image_size)
    except UnreadableImageError as error:
        raise InputError(f"{path} was changed or removed during training: {error.reason}") from error


def measure_held_out(detectors: list[AnomalyDetector], held_out: list[HeldOut], run: Run) -> list[list[Tensor]]:
    """Measure images, each by the detector of its fold (entry fold + 1): their distance maps, on the CPU."""

    def measure(item: HeldOut) -> list[Tensor]:
        return [m.cpu() for m in detectors[item.fold + 1].distance_maps(_load(item, run))]

    measured: list[list[Tensor]] = []
    for maps in parallel_map(measure, held_out, run.workers):
        measured.append(maps)
        run.progress("calibrating on held-out normal images", len(measured), len(held_out))
    return measured


def _learn_head(
    detectors: list[AnomalyDetector], held_out: list[HeldOut], anomalies: list[Path], run: Run
) -> HeadWeights:
    """Run stage 2 on labelled anomalies, and on synthetic ones where time allows.

    Anomalies are measured by the detectors of the folds too, so that they meet memories of the same size.
    """
    folds = len(detectors) - 1
    known = [HeldOut(i % folds, path) for i, path in enumerate(anomalies)]
    if run.config.effort is Effort.THOROUGH:
        known += [
            HeldOut(item.fold, item.path, run.config.seed + i, held_out[i - 1].path) for i, item in enumerate(held_out)
        ]
    items = [*held_out, *known] if known else []

    def measure(item: HeldOut) -> list[Tensor]:
        return [hot.cpu() for hot in detectors[item.fold + 1].hot_deviations(_load(item, run))]

    results = []
    for result in parallel_map(measure, items, run.workers):
        results.append(result)
        run.progress("weighing deviations (stage 2)", len(results), len(items))
    count = len(detectors[0].scale_names)
    if not results:
        return HeadWeights([torch.ones(1)] * count, torch.ones(count), 0.0)
    channels = [torch.cat(each).clone() for each in zip(*results, strict=True)]
    shares = torch.tensor([1 / (count - 1)] * (count - 1) + [1.0])  # the local scales share one vote
    anomalous = torch.arange(len(items)) >= len(held_out)
    return learn_head(HeadData(channels, shares, anomalous), run.config.seed)


def calibrate(detector: AnomalyDetector, measured: list[list[Tensor]]) -> tuple[Calibration, Unit]:
    """Set every unit from the distance maps of held-out normal images.

    The image score has two voices, the fused map and the image scale: local defects, and objects and style.

    Args:
        detector: with its cell statistics and weights set.
        measured: one map a scale, for every image.
    """
    weights = np.zeros(len(detector.deviation_names))
    weights[0] = np.mean([float(detector.scale(name).weight) for name in detector.local_names])
    weights[-1] = float(detector.scale(IMAGE_SCALE).weight)
    device = next(detector.buffers()).device
    detections = [detector.combine([m.to(device) for m in maps]) for maps in measured]
    hottest = np.array([float(detection.anomaly_maps.max()) for detection in detections])
    typical = float(np.median([float(detection.anomaly_maps.median()) for detection in detections]))
    deviations: NDArray[np.float64] = torch.cat([d.deviations for d in detections]).cpu().double().numpy()
    calibration = Calibration.fit(deviations, weights)
    return calibration, Unit(typical, Unit.fit(hottest).limit)


def set_cell_statistics(detectors: list[AnomalyDetector], measured: list[list[Tensor]], seed: int) -> None:
    """Set location and spread of the distances of a cell, a scale, from held-out normal images, in all detectors."""
    generator = torch.Generator().manual_seed(seed)
    for i, name in enumerate(detectors[0].scale_names):
        cells = torch.cat([maps[i].flatten() for maps in measured])
        if len(cells) > CELL_SAMPLE:
            cells = cells[torch.randint(0, len(cells), (CELL_SAMPLE,), generator=generator)]
        for detector in detectors:
            detector.scale(name).cell_mean.copy_(cells.mean())
            detector.scale(name).cell_std.copy_(cells.std().clamp(min=1e-6))
