"""Update a detector with new normal or anomalous images, without the old ones, and recalibrate it; never prints."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from anomaly_cli.config import MIN_NORMALS
from anomaly_cli.detector.anomaly_detector import AnomalyDetector, ScaleModel
from anomaly_cli.detector.anomaly_distance import append_labelled_weight, deviations_of
from anomaly_cli.detector.calibration import Calibration
from anomaly_cli.detector.checkpoint import Model, Provenance, load_model, save_model
from anomaly_cli.detector.devices import choose_device
from anomaly_cli.detector.memory import PrototypeMemory
from anomaly_cli.detector.prototype_patches import Patches
from anomaly_cli.detector.scales import TURNED_SCALE
from anomaly_cli.errors import ConfigError
from anomaly_cli.images.find import collect
from anomaly_cli.outputs import Kind, Output, check_outputs
from anomaly_cli.scoring.measure import choose_roi
from anomaly_cli.scoring.parallel import Progress, worker_count
from anomaly_cli.training.cell_samples import Cells
from anomaly_cli.training.cross_fitting import CrossFit, HeldOutImage, assign_folds, measure_held_out, surest_memory
from anomaly_cli.training.labelled_fit import describe_anomalies, fit_labelled_classifier
from anomaly_cli.training.prototype_patches import cut_patches
from anomaly_cli.training.run import TrainingContext
from anomaly_cli.training.train import check_labels
from anomaly_cli.training.training_set import NormalSet, sample_cells


@dataclass(frozen=True)
class UpdateReport:
    """What `update` added."""

    model_path: Path
    model: Model
    normals: int
    anomalies: int
    unreadable: list[tuple[Path, str]]


def update(
    model_path: Path,
    normal: Sequence[Path],
    *,
    anomalies: Sequence[Path] = (),
    out: Path | None = None,
    roi: Path | None = None,
    device: str = "auto",
    progress: Progress,
) -> UpdateReport:
    """Add new images to a model and write it, over itself unless `out` is given.

    Whitening and the units of cells and maps stay. Every memory is chosen anew among its prototypes and cells of the
    new normal images. These are scored cross-fitted, as in training, and added to the held-out normal images of the
    calibration; the old ones keep their deviations, which the larger memories could only lower, so p-values are
    conservative. With new labelled anomalies the new images alone calibrate, since the odds of the old ones are
    unknown. `roi` is for the new images, where it is not that of the model.

    Raises:
        ConfigError: nothing new is named.
        InputError: no new normal image can be read, or too few to calibrate new labelled anomalies with.
    """
    if not normal:
        raise ConfigError("name new normal images; with anomalous ones too, because they calibrate the updated model")
    target = out or model_path
    check_outputs([Output("--out", target, Kind.MODEL)], [*normal, *anomalies, roi])
    chosen = choose_device(device)
    old = load_model(model_path, chosen)
    check_labels(old.config, anomalies)
    new, labelled_paths = collect(normal), collect(anomalies) if anomalies else []
    region = choose_roi(old, roi, [*new, *labelled_paths])
    run = TrainingContext(old.config, chosen, worker_count(), progress, roi=region)
    names, least = old.detector.scale_names, MIN_NORMALS if labelled_paths else 1
    cells, normals = sample_cells(new, old.detector.backbone, names, run, at_least=least)
    folds = assign_folds(len(normals.paths), run.config.seed, normals.groups)
    detectors = [_grown(old.detector, cells, folds != fold, run) for fold in range(-1, int(folds.max()) + 1)]
    held_out = [HeldOutImage(fold, path) for fold, path in zip(folds.tolist(), normals.paths, strict=True)]
    fitted = CrossFit(detectors, held_out, measure_held_out(detectors, held_out, run))
    labelled = describe_anomalies(fitted.final, labelled_paths, run)
    odds = fit_labelled_classifier(fitted, labelled.values, run, before=old.detector.known_anomalies)
    model = replace(
        old,
        detector=fitted.final,
        calibration=_recalibrated(old, fitted, odds, keep_old=not labelled_paths),
        provenance=_extended(old.provenance, normals, labelled.count),
        patches=_patches(old, fitted.final, cells, normals.paths, run) if old.patches else {},
    )
    save_model(model, target)
    return UpdateReport(target, model, len(normals.paths), labelled.count, normals.unreadable + labelled.unreadable)


def _recalibrated(old: Model, fitted: CrossFit, odds: Tensor, *, keep_old: bool) -> Calibration:
    """Calibrate by the new held-out images, and by the old ones where their deviations are still valid."""
    deviations = deviations_of(fitted.final, fitted.measured, odds)
    if keep_old:
        deviations = np.concatenate([old.calibration.normal_deviations, deviations])
    weights = old.calibration.weights[: 1 + len(old.detector.scale_names)]  # without labelled anomalies
    return Calibration.fit(deviations, append_labelled_weight(weights, fitted.final))


def _extended(old: Provenance, normals: NormalSet, anomalies: int) -> Provenance:
    return replace(
        old,
        images=old.images + len(normals.paths),
        anomalies=old.anomalies + anomalies,
        unreadable=old.unreadable + len(normals.unreadable),
        training_set=hashlib.sha256(f"{old.training_set}{normals.digest}".encode()).hexdigest(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _grown(old: AnomalyDetector, cells: dict[str, Cells], kept: Tensor, run: TrainingContext) -> AnomalyDetector:
    """Copy a detector with memories that also cover the cells of the new images where `kept` (images,) is true."""
    scales = {}
    for name in old.scale_names:
        scale = old.scale(name)
        new = scale.whitening(cells[name].values[kept[cells[name].sources]].to(run.device))
        candidates = torch.cat([scale.memory.prototypes, new])
        generator = torch.Generator().manual_seed(run.config.seed)
        count = max(run.config.prototypes, len(scale.memory.prototypes))
        memory = (
            surest_memory(candidates) if name == TURNED_SCALE else PrototypeMemory.choose(candidates, count, generator)
        )
        scales[name] = _with_memory(scale, memory)
    return AnomalyDetector(old.backbone, scales, old.known_anomalies, tiled=old.tiled).eval()


def _with_memory(scale: ScaleModel, memory: PrototypeMemory) -> ScaleModel:
    copy = ScaleModel(scale.whitening).to(memory.prototypes.device)
    for name in ("weight", "cell_mean"):
        getattr(copy, name).copy_(getattr(scale, name))
    copy.memory = memory
    return copy


def _patches(
    old: Model, grown: AnomalyDetector, cells: dict[str, Cells], paths: list[Path], run: TrainingContext
) -> Patches:
    """Keep the thumbnails of the old prototypes that remain, and cut those of the new ones."""
    chosen = {name: grown.scale(name).memory.chosen for name in grown.scale_names}
    old_counts = {name: len(pictures) for name, pictures in old.patches.items()}
    origins = {
        name: cells[name].origins(each[each >= old_counts[name]] - old_counts[name]) for name, each in chosen.items()
    }
    cut = {name: iter(pictures) for name, pictures in cut_patches(grown, origins, paths, run).items()}
    return {
        name: [old.patches[name][i] if i < old_counts[name] else next(cut[name]) for i in each.tolist()]
        for name, each in chosen.items()
    }
