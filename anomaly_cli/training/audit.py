"""Audit one folder without a normal set: rank its images by rarity; never prints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from anomaly_cli.config import DetectorConfig
from anomaly_cli.detector.backbones.build import build_backbone
from anomaly_cli.detector.devices import choose_device
from anomaly_cli.images.find import by_count, collect
from anomaly_cli.images.patterns import EVERY_FILE, PathPatterns
from anomaly_cli.images.roi import open_roi
from anomaly_cli.scoring.parallel import Progress, worker_count
from anomaly_cli.scoring.rows import RankedRows
from anomaly_cli.tables.formats import TableFormat
from anomaly_cli.tables.row import rank_rows
from anomaly_cli.tables.writer import Table
from anomaly_cli.training.run import TrainingContext
from anomaly_cli.training.train import check_variation
from anomaly_cli.training.training_set import limit_image_size


@dataclass(frozen=True)
class AuditReport(RankedRows):
    """What `audit` found: ranked rows, and the number of outliers, which enter no memory."""

    left_out: int
    passed_over: dict[str, int]


def audit(
    inputs: Sequence[Path],
    config: DetectorConfig,
    *,
    weights: Path | None = None,
    roi: Path | None = None,
    patterns: PathPatterns = EVERY_FILE,
    device: str = "auto",
    progress: Progress,
) -> AuditReport:
    """Rank the images of one folder by how far each deviates from the bulk of the others.

    Cross-fitted: no image is compared with itself. Trimmed: outliers enter neither memories nor units, so that 1.0 is
    the limit of the bulk. Without a normal set this ranks rarity; there are no p- and q-values.

    Raises:
        InputError: fewer than `MIN_NORMALS` images can be read.
    """
    from anomaly_cli.training.cross_fitted_scores import score_normals
    from anomaly_cli.training.fit import train_detector

    region = None if roi is None else open_roi(roi)
    passed_over: Counter[str] = Counter()
    chosen, paths = choose_device(device), collect(inputs, patterns, passed_over)
    if region is not None:
        region.check_names(paths)
    backbone = build_backbone(config.backbone, weights, config.seed)
    run = TrainingContext(limit_image_size(config, paths, worker_count()), chosen, worker_count(), progress, roi=region)
    trained = train_detector(paths, [], backbone, run, clean=False)
    check_variation(trained.calibration)
    rows = [
        replace(row, p_value=None, flagged=row.score is not None and row.score >= 1)
        for row in score_normals(trained, run)
    ]
    return AuditReport(rank_rows(rows), trained.detector.column_names, len(trained.outliers), by_count(passed_over))


def write_audit(report: AuditReport, out: Path | None, table_format: TableFormat) -> None:
    """Write the table to a file, or to stdout where `out` is None."""
    Table(report.rows, report.scale_names).write(out, table_format)
