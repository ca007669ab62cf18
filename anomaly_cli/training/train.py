"""`train`: from a folder of normal images to a model file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from anomaly_cli.config import DetectorConfig
from anomaly_cli.detector.backbones.build import build_backbone
from anomaly_cli.detector.calibration import Calibration
from anomaly_cli.detector.checkpoint import Model, Provenance, library_versions, save_model
from anomaly_cli.detector.devices import choose_device
from anomaly_cli.errors import ConfigError, InputError
from anomaly_cli.images.find import by_count, collect
from anomaly_cli.images.patterns import EVERY_FILE, PathPatterns
from anomaly_cli.images.roi import SharedRoi, open_roi
from anomaly_cli.outputs import Kind, Output, check_outputs
from anomaly_cli.scoring.parallel import Progress, worker_count
from anomaly_cli.scoring.tiled import tell_cost
from anomaly_cli.tables.formats import format_of
from anomaly_cli.tables.writer import Table
from anomaly_cli.training.distributed import local_device, process_group
from anomaly_cli.training.prototype_patches import cut_patches
from anomaly_cli.training.resume import Announce, resumed
from anomaly_cli.training.run import TrainingContext
from anomaly_cli.training.training_set import choose_window, limit_image_size

if TYPE_CHECKING:
    from anomaly_cli.training.fit import TrainedDetector


@dataclass(frozen=True)
class TrainReport:
    """What `train` learned."""

    model_path: Path
    model: Model
    unreadable: list[tuple[Path, str]]
    outliers: list[Path]
    copies: int
    copies_together: int
    reused: dict[str, tuple[int, int]] = field(default_factory=dict)  # phase: finished and total of an interrupted run
    passed_over: dict[str, int] = field(default_factory=dict)  # files in folders that are no images, by kind


def train(
    normal: Sequence[Path],
    model_path: Path,
    config: DetectorConfig,
    *,
    anomalies: Sequence[Path] = (),
    weights: Path | None = None,
    roi: Path | None = None,
    audit_normals: Path | None = None,
    patterns: PathPatterns = EVERY_FILE,
    thumbnails: bool = True,
    resume: Announce | None = None,
    tell: Callable[[str], None] | None = None,
    device: str = "auto",
    progress: Progress,
) -> TrainReport:
    """Fit a detector to normal images and write the model file, and on request a table of these images.

    `roi` is a mask of what is inspected, or a folder of one a file. `thumbnails` keeps pictures of the prototypes,
    `resume` finished steps. `tell` takes what tiles will cost. Of several processes the first one writes.
    """
    # Here, since it imports scikit-learn, which scoring does without.
    from anomaly_cli.training.cross_fitted_scores import score_normals
    from anomaly_cli.training.fit import local_scales, train_detector

    check_labels(config, anomalies)
    outputs = [Output("--model", model_path, Kind.MODEL), Output("--audit-normals", audit_normals, Kind.TABLE)]
    check_outputs(outputs, [*normal, *anomalies, weights, roi])
    region = None if roi is None else open_roi(roi)
    audit_format = None if audit_normals is None else format_of(audit_normals)
    paths = collect(normal, patterns, passed_over := Counter[str]())
    anomalous = collect(anomalies, patterns, passed_over) if anomalies else []
    with process_group() as processes:
        workers = max(1, worker_count() // processes.local_count)
        paths, anomalous = processes.broadcast((paths, anomalous))  # a folder may be filled at this moment
        if region is not None:
            region.check_names([*paths, *anomalous])
        config = choose_window(limit_image_size(config, paths, workers), paths, workers)
        config = processes.broadcast(replace(config, roi=None if region is None else region.kind))
        run = TrainingContext(config, choose_device(local_device(device)), workers, progress, processes, roi=region)
        backbone = build_backbone(config.backbone, weights, config.seed)
        tell_cost(tell, config, backbone, local_scales(backbone), paths, workers)
        resuming = resumed(run, model_path, [paths, anomalous], backbone, resume) if resume else nullcontext(run)
        with resuming as run:
            trained = train_detector(paths, anomalous, backbone, run)
            check_variation(trained.calibration)
            model = _save(trained, model_path, run, thumbnails=thumbnails)
            if audit_format is not None and processes.is_first:
                Table([*score_normals(trained, run)], trained.detector.column_names).write(audit_normals, audit_format)
    return _report(trained, model_path, model, run.saved.reused, by_count(passed_over))


def _report(
    trained: TrainedDetector, path: Path, model: Model, reused: dict[str, tuple[int, int]], passed_over: dict[str, int]
) -> TrainReport:
    return TrainReport(
        model_path=path,
        model=model,
        unreadable=trained.normals.unreadable + trained.labelled.unreadable,
        outliers=trained.outliers,
        copies=trained.normals.copies,
        copies_together=trained.normals.held_out_together,
        reused=reused,
        passed_over=passed_over,
    )


def check_labels(config: DetectorConfig, anomalies: Sequence[Path]) -> None:
    """Refuse labelled anomalies where images are read in tiles.

    Raises:
        ConfigError: there are some.
    """
    if anomalies and config.smallest_defect is not None:
        raise ConfigError(
            "--anomalies does not go with --smallest-defect: labelled anomalies are described by whole images"
        )


def check_variation(calibration: Calibration) -> None:
    """Refuse normal images that are all alike: without variation there is no unit for scores.

    Raises:
        InputError: a part of the score is the same for all of them.
    """
    if calibration.is_degenerate:
        raise InputError(
            "the images do not differ from each other, so that nothing tells how much normal images vary: "
            "add images that are no copies"
        )


def _save(trained: TrainedDetector, path: Path, run: TrainingContext, *, thumbnails: bool) -> Model:
    """Write the model file in the first process; the models of the others have no thumbnails."""
    first = run.processes.is_first
    provenance = Provenance(
        images=len(trained.normals.paths),
        anomalies=trained.labelled.count,
        unreadable=len(trained.normals.unreadable),
        suspects=len(trained.outliers),
        training_set=trained.normals.digest,
        versions=library_versions(*trained.detector.backbone.libraries),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    patches = cut_patches(trained.detector, trained.origins, trained.normals.paths, run) if thumbnails and first else {}
    mask = run.roi.mask if isinstance(run.roi, SharedRoi) else None
    model = Model(trained.detector, trained.calibration, trained.map_scale, run.config, provenance, patches, mask)
    if first:
        save_model(model, path)
    return model
