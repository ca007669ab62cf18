"""Learn a detector from normal images: memories, learned parts and held-out calibration."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anomaly_cli.backbone import SCRATCH, Backbone
from anomaly_cli.calibration import MIN_SPREAD, Calibration, Unit
from anomaly_cli.config import MIN_NORMALS, Effort
from anomaly_cli.contrast import Schedule, learn_backbone
from anomaly_cli.detector import AnomalyDetector, Detection, ScaleModel
from anomaly_cli.errors import UnreadableImageError
from anomaly_cli.held_out import HeldOut, measure_held_out
from anomaly_cli.images import load_image
from anomaly_cli.labelled import learn_known, look_at_anomalies
from anomaly_cli.memory import SHRINKAGE, PrototypeMemory, Whitening
from anomaly_cli.normals import Cells, NormalSet, Origin, Run, sample_cells
from anomaly_cli.scales import IMAGE_SCALE, POOLED_SCALES, SMALL_SCALE, has_small_scale
from anomaly_cli.scoring import parallel_map

LOCAL_STRIDES = (4, 8, 16)  # a coarser one adds nothing (docs/method.md)
CALIBRATION_IMAGES = 1_000  # at most so many normal images are measured as if unseen
SMALL_WEIGHT = 0.5  # of the small copy in the image score, where the image scale has 1
MAP_SIDE = 128  # pixels; the map of an image of this side has the weights below where the image scale has 1
MAP_WEIGHT = 0.5  # of a map on which planted defects stand out by one spread of normal images
LEAST_MAP_WEIGHT = 0.5  # of a map on which they do not show
PLANTED = 128  # defects that tell how well each scale shows one
USUAL_SENSITIVITY = 2.0  # taken for granted before defects are planted
MAX_SENSITIVITY = 5.0  # spreads of normal images that are hardly different are not to be counted
LOCAL_FLOOR = 0.1  # of the whitening of local scales (docs/method.md)
FOLDS = 5
FEW_IMAGES = 50  # below, a fifth is too much to leave out
FOLDS_OF_FEW = 10
CELL_SAMPLE = 200_000  # distances a scale that the mean is taken from
SCRATCH_IMAGES = 1_000  # at most so many are kept in memory while `scratch` learns its backbone
SCRATCH_STEPS = {Effort.QUICK: 60, Effort.STANDARD: 200, Effort.THOROUGH: 3_000}


@dataclass(frozen=True)
class TrainedDetector:
    """A detector with everything that turns its measurements into a table.

    Attributes:
        anomalies: labelled anomalous images that could be read.
        unreadable_anomalies: path and reason of the others.
        fold_detectors: one a fold, learned from the others.
        folds: (images,) fold of each normal image.
        suspects: normal images that stand out and shaped no memory.
        origins: for each scale, where its prototypes come from.
    """

    detector: AnomalyDetector
    calibration: Calibration
    map_unit: Unit
    normals: NormalSet
    anomalies: int
    unreadable_anomalies: list[tuple[Path, str]]
    fold_detectors: list[AnomalyDetector]
    folds: Tensor
    suspects: list[Path]
    origins: dict[str, list[Origin]]


def train_detector(
    paths: list[Path], anomalies: list[Path], backbone: Backbone, run: Run, *, clean: bool = True
) -> TrainedDetector:
    """Learn what the images at `paths` have in common.

    The images are dealt into folds. Each fold is measured by a detector that learned from the others only, and
    from these held-out measurements every unit is set; the detector that is kept learned from all images.

    Args:
        paths: normal images.
        anomalies: known anomalous images; they shape the features of `scratch` and the distance, never a memory.
        backbone: with its starting weights; `scratch` is trained in place.
        run: settings and machine.
        clean: whether the images are taken for normal, so that all of them say how much normal images vary; if
            not, those that stand out are left out of the units as they are of the memories.

    Raises:
        InputError: fewer than `MIN_NORMALS` images can be read.
    """
    backbone = backbone.to(run.device)
    names = _scale_names(backbone, run.config.image_size)
    if backbone.name == SCRATCH:
        _learn_from_scratch(backbone, names, paths, anomalies, run)
    cells, normals = sample_cells(paths, backbone, names, run)
    folds = deal_folds(len(normals.paths), run.config.seed, normals.groups)
    numbers = range(0, len(normals.paths), max(1, -(-len(normals.paths) // CALIBRATION_IMAGES)))
    held_out = [HeldOut(int(folds[i]), normals.paths[i]) for i in numbers]
    detectors, measured = _cross_fit(cells, folds, backbone, held_out, run, "held-out")
    # Defects are planted once it is known which images may be anomalous themselves.
    weights = voice_weights(detectors[0], run.config.image_size, USUAL_SENSITIVITY)
    suspects = run.processes.from_first(_suspects(detectors[0], measured, weights))
    if suspects:
        left_out = torch.tensor([numbers[i] for i in suspects])
        cells = {name: each.without(left_out) for name, each in cells.items()}
        detectors, measured = _cross_fit(cells, folds, backbone, held_out, run, "held-out-cleaned")
    sensitivity = weigh_scales(detectors, held_out, measured, suspects, run)
    labelled = look_at_anomalies(detectors[0], anomalies, run)
    known = learn_known(detectors, held_out, labelled.looks, run, suspects=suspects)
    if not clean:
        kept = [i for i in range(len(measured)) if i not in set(suspects)]
        measured, known = [measured[i] for i in kept], known[kept]
        set_cell_means(detectors, measured, run.config.seed)
    weights = voice_weights(detectors[0], run.config.image_size, sensitivity)
    calibration, map_unit = calibrate(detectors[0], measured, weights, known)
    return TrainedDetector(
        detector=detectors[0],
        calibration=calibration,
        map_unit=map_unit,
        normals=normals,
        anomalies=len(anomalies) - len(labelled.unreadable),
        unreadable_anomalies=labelled.unreadable,
        fold_detectors=detectors[1:],
        folds=folds,
        suspects=[held_out[i].path for i in suspects],
        origins={name: each.origins(detectors[0].scale(name).memory.chosen) for name, each in cells.items()},
    )


def _cross_fit(
    cells: dict[str, Cells], folds: Tensor, backbone: Backbone, held_out: list[HeldOut], run: Run, step: str
) -> tuple[list[AnomalyDetector], list[list[Tensor]]]:
    """Learn from all cells and without each fold; measure every held-out image by the detector of its fold."""
    learned = learn_scales(cells, folds, run)
    detectors = [AnomalyDetector(backbone, scales).to(run.device).eval() for scales in learned]
    measured = measure_held_out(detectors, held_out, run, step)
    set_cell_means(detectors, measured, run.config.seed)
    return detectors, measured


def _suspects(detector: AnomalyDetector, measured: list[list[Tensor]], weights: NDArray[np.float64]) -> list[int]:
    """Number the held-out images that stand so far out that no memory should learn from them.

    A greedy coreset takes up outliers first, so a few anomalies among the normal images cost much. The suspects stay
    in the calibration: leaving out the oddest normal images would make p-values smaller than they may be.
    """
    calibration, _ = calibrate(detector, measured, weights)
    standing_out = np.flatnonzero(calibration.suspects(deviations_of(detector, measured)))
    return [int(i) for i in standing_out[: len(measured) - MIN_NORMALS]]


def _scale_names(backbone: Backbone, image_size: int) -> tuple[str, ...]:
    strides = [stride for stride in backbone.strides if stride in LOCAL_STRIDES] or [backbone.strides[-1]]
    small = (SMALL_SCALE,) if has_small_scale(image_size) else ()
    return (*map(str, strides), IMAGE_SCALE, *small)


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
        learn_backbone(backbone, names, images, normal, schedule, run)
    backbone.freeze()


def deal_folds(count: int, seed: int, groups: NDArray[np.int64] | None = None) -> Tensor:
    """Assign each of (count,) images a fold; there are more folds when images are few.

    Args:
        count: of images.
        seed: of the order.
        groups: (count,) images of one number get the same fold, since a copy that the memory knows would make the
            other look too normal; 0 is no group.
    """
    folds = FOLDS if count >= FEW_IMAGES else min(count, FOLDS_OF_FEW)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    together: dict[tuple[bool, int], list[int]] = {}
    for image in order:
        group = 0 if groups is None else int(groups[image])
        together.setdefault((True, group) if group else (False, image), []).append(image)
    fold = torch.empty(count, dtype=torch.int64)
    filled = [0] * min(folds, len(together))
    for images in sorted(together.values(), key=len, reverse=True):
        emptiest = filled.index(min(filled))
        fold[images] = emptiest
        filled[emptiest] += len(images)
    return fold


def learn_scales(cells: dict[str, Cells], folds: Tensor, run: Run) -> list[dict[str, ScaleModel]]:
    """Learn every scale once from all images and once without each fold: entry 0, then one a fold."""
    left_out = [None, *range(int(folds.max()) + 1)]
    jobs = [(fold, name) for fold in left_out for name in cells]

    def learn(job: tuple[int | None, str]) -> ScaleModel:
        fold, name = job
        kept = torch.ones(len(folds), dtype=torch.bool) if fold is None else folds != fold
        # As many prototypes from fewer images would cover their typical cells more closely than the detector in use
        # does, and held-out images would look nearer than fresh ones (docs/statistics.md).
        count = round(run.config.prototypes * float(kept.float().mean()) ** 0.5)
        floor = SHRINKAGE if name in POOLED_SCALES else LOCAL_FLOOR
        return learn_scale(cells[name].values[kept[cells[name].sources]].to(run.device), count, floor, run).cpu()

    own = run.processes.share(jobs)
    scales: list[ScaleModel] = []
    for scale in parallel_map(learn, own, run.workers):
        scales.append(scale)
        run.progress("choosing prototypes", len(scales), len(own))
    learned: list[dict[str, ScaleModel]] = [{} for _ in left_out]
    for (fold, name), scale in zip(jobs, run.processes.join(scales), strict=True):
        learned[0 if fold is None else fold + 1][name] = scale
    return learned


def learn_scale(cells: Tensor, count: int, floor: float, run: Run) -> ScaleModel:
    """Fit one scale on (M, D) normal cells: whitening, then a memory of `count` of them.

    The prototypes are a coreset, so every one is a real normal cell.
    """
    scale = ScaleModel(Whitening.fit(cells, floor)).to(cells.device)
    embeddings = scale.whitening(cells)
    scale.memory = PrototypeMemory.choose(embeddings, count, torch.Generator().manual_seed(run.config.seed))
    return scale


def weigh_scales(
    detectors: list[AnomalyDetector],
    held_out: list[HeldOut],
    measured: list[list[Tensor]],
    suspects: list[int],
    run: Run,
) -> float:
    """Stage 2: weigh the local scales, in all detectors, by how well each shows defects planted in normal images.

    The sensitivity d of a scale is by how much a planted defect raises the logarithm of the deviation, in spreads of
    held-out normal images; each image is measured by the detector of its fold, with and without the defect. A scale
    weighs 1 + d² in the fused map: alike where none shows anything, and else by the power of its signal.

    Returns:
        The sensitivity of the fused map.
    """
    left_out = set(suspects)
    numbers = [i for i in range(len(held_out)) if i not in left_out]
    spoiled = [numbers[i % len(numbers)] for i in range(PLANTED)]
    items = [
        replace(held_out[number], defect_seed=run.config.seed + i, other=held_out[numbers[(i + 1) % len(numbers)]].path)
        for i, number in enumerate(spoiled)
    ]
    planted = measure_held_out(detectors, items, run, "planted", "planting defects (stage 2)")
    rows = [0, *(1 + i for i, name in enumerate(detectors[0].scale_names) if name not in POOLED_SCALES)]

    def sensitivities() -> NDArray[np.float64]:
        normal, odd = (np.log(deviations_of(detectors[0], each)[:, rows]) for each in (measured, planted))
        spread = np.maximum(normal[numbers].std(axis=0), MIN_SPREAD)
        raised: NDArray[np.float64] = ((odd - normal[spoiled]) / spread).mean(axis=0)
        return raised.clip(0, MAX_SENSITIVITY)

    weights = run.processes.from_first((1 + sensitivities()[1:] ** 2).tolist())
    for detector in detectors:
        for name, weight in zip(detector.local_names, weights, strict=True):
            detector.scale(name).weight.fill_(weight)
    return float(run.processes.from_first(float(sensitivities()[0])))


def calibrate(
    detector: AnomalyDetector,
    measured: list[list[Tensor]],
    weights: NDArray[np.float64],
    known: Tensor | None = None,
) -> tuple[Calibration, Unit]:
    """Set every unit from the distance maps of held-out normal images.

    Args:
        detector: with its cell means and weights set.
        measured: one map a scale, for every image.
        weights: (E,) of the deviations in the image score.
        known: (images, 1) deviations from the known anomalies where the detector has some.
    """
    detections = _combine(detector, measured)
    hottest = np.array([float(detection.anomaly_maps.max()) for detection in detections])
    typical = float(np.median([float(detection.anomaly_maps.median()) for detection in detections]))
    deviations = deviations_of(detector, measured, known)
    return Calibration.fit(deviations, weights), Unit(typical, Unit.fit(hottest).limit)


def voice_weights(detector: AnomalyDetector, image_size: int, sensitivity: float) -> NDArray[np.float64]:
    """Weigh the deviations in the image score.

    Its voices are the fused map, which tells local defects, and the image scale, which tells objects and style. The map
    has the more to say the better it shows planted defects: on parts of a line an unknown cell is a defect, in
    photographs of a subject there are always some. The map of a small picture is few cells, each of which sees most of
    the picture, so its voice grows with the side. The small copy adds a softer voice, and known anomalies one that
    grows with their number.

    Args:
        detector: with its known anomalies.
        image_size: pixels.
        sensitivity: of the fused map, from `weigh_scales`.
    """
    weight_of = {IMAGE_SCALE: 1.0, SMALL_SCALE: SMALL_WEIGHT}
    weights = np.array([weight_of.get(name, 0.0) for name in ("map", *detector.scale_names)])
    weights[0] = max(LEAST_MAP_WEIGHT, MAP_WEIGHT * sensitivity) * image_size / MAP_SIDE
    return with_known(weights, detector)


def with_known(weights: NDArray[np.float64], detector: AnomalyDetector) -> NDArray[np.float64]:
    """Add the weight of the known anomalies, where there are some, to those of map and scales."""
    if detector.known_anomalies is None:
        return weights
    return np.append(weights, detector.known_anomalies.weight * weights.sum())


def deviations_of(
    detector: AnomalyDetector, measured: list[list[Tensor]], known: Tensor | None = None
) -> NDArray[np.float64]:
    """Join the deviations of maps and scales with those from the known anomalies: (images, E)."""
    columns = torch.cat([detection.deviations for detection in _combine(detector, measured)]).cpu()
    joined: NDArray[np.float64] = torch.cat([columns] if known is None else [columns, known], dim=1).double().numpy()
    return joined


def _combine(detector: AnomalyDetector, measured: list[list[Tensor]]) -> list[Detection]:
    device = next(detector.buffers()).device
    return [detector.combine([m.to(device) for m in maps]) for maps in measured]


def set_cell_means(detectors: list[AnomalyDetector], measured: list[list[Tensor]], seed: int) -> None:
    """Set the mean distance of a cell, a scale, from held-out normal images, in all detectors."""
    generator = torch.Generator().manual_seed(seed)
    for i, name in enumerate(detectors[0].scale_names):
        cells = torch.cat([maps[i].flatten() for maps in measured])
        if len(cells) > CELL_SAMPLE:
            cells = cells[torch.randint(0, len(cells), (CELL_SAMPLE,), generator=generator)]
        for detector in detectors:
            detector.scale(name).cell_mean.copy_(cells.mean().clamp(min=1e-6))
