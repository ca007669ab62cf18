"""`anomaly audit`: rank one folder by how rare each image is in it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from anomaly_cli.commands import console
from anomaly_cli.commands.console import list_worst, plural, print_stderr, say_passed_over
from anomaly_cli.commands.inputs import patterns_of, read_inputs
from anomaly_cli.commands.options import (
    DEFAULTS,
    BackboneName,
    Device,
    Exclude,
    FilesFrom,
    Format,
    ImageSize,
    Include,
    Inputs,
    NulSeparated,
    Out,
    Prototypes,
    Quiet,
    Roi,
    Seed,
    Weights,
)
from anomaly_cli.config import DetectorConfig
from anomaly_cli.outputs import Kind, Output, check_outputs
from anomaly_cli.paths import paths_of
from anomaly_cli.tables.formats import format_of

if TYPE_CHECKING:
    from anomaly_cli.training.audit import AuditReport


def summarise_audit(report: AuditReport, out: str) -> None:
    """Print how many images are flagged, and what the table can and cannot tell."""
    readable = [row for row in report.rows if row.status == "ok"]
    print_stderr(
        f"{plural(len(report.rows), 'file')}: {len(report.flagged)} flagged (beyond the limit of the bulk), "
        f"{len(report.unreadable)} unreadable"
    )
    print_stderr(
        "without a normal folder this ranks how rare an image is among the others; "
        "for p- and q-values train on images that are known to be normal"
    )
    say_passed_over(report.passed_over)
    list_worst(readable, report.unreadable)
    print_stderr(f"table: {out}")


def audit(
    inputs: Inputs = None,
    out: Out = Path("audit.csv"),
    format: Format = None,
    backbone: BackboneName = DEFAULTS.backbone,
    weights: Weights = None,
    image_size: ImageSize = DEFAULTS.image_size,
    prototypes: Prototypes = DEFAULTS.prototypes,
    roi: Roi = None,
    seed: Seed = DEFAULTS.seed,
    files_from: FilesFrom = None,
    null: NulSeparated = False,
    include: Include = None,
    exclude: Exclude = None,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Rank the images of one folder by how rare they are in it: no normal folder, no model needed."""
    target = None if out == Path("-") else out
    read = [weights, roi, *map(Path, [files_from] if files_from else []), *paths_of(inputs)]
    check_outputs([Output("--out", target, Kind.TABLE)], read)
    table_format = format_of(target, format)
    paths = read_inputs(inputs, files_from, null)
    patterns = patterns_of(include, exclude)
    config = DetectorConfig(backbone=backbone, image_size=image_size, prototypes=prototypes, seed=seed)
    from anomaly_cli.training.audit import audit as audit_images
    from anomaly_cli.training.audit import write_audit

    with console.progress(quiet) as progress:
        report = audit_images(
            paths, config, weights=weights, roi=roi, patterns=patterns, device=device, progress=progress
        )
    write_audit(report, target, table_format)
    if not quiet:
        summarise_audit(report, "stdout" if target is None else os.fspath(target))
