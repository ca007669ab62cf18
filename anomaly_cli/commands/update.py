"""`anomaly update`: add images or labels to a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from anomaly_cli.commands import console
from anomaly_cli.commands.console import plural, print_stderr, warn_unreadable, warn_unreliable_labels
from anomaly_cli.commands.options import Device, NewRoi, Quiet
from anomaly_cli.images.find import check_named
from anomaly_cli.paths import paths_of

if TYPE_CHECKING:
    from anomaly_cli.training.update import UpdateReport


def summarise_update(report: UpdateReport) -> None:
    """Print what was added and what the model is based on now."""
    warn_unreadable(report.unreadable)
    warn_unreliable_labels(report.model.label_reliability)
    provenance, normals = report.model.provenance, report.model.calibration.normal_scores
    added = [plural(report.normals, "normal image")]
    if report.anomalies:
        added.append(f"{report.anomalies} labelled anomalous")
    print_stderr(
        f"added {' and '.join(added)}; now {provenance.images} normal and {provenance.anomalies} labelled anomalous"
    )
    held_out = plural(len(normals), "held-out normal image")
    print_stderr(
        f"calibrated on {held_out}, scores {normals[0]:.2f} to {normals[-1]:.2f}; 1 is the limit of normal (99 %)"
    )
    print_stderr(f"saved {report.model_path}")


def update(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Model file to update.")],
    normal: Annotated[list[str] | None, typer.Argument(metavar="NORMAL...", help="Folders or files to add.")] = None,
    anomalies: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DIR",
            help="Labelled anomalous images to add; the new normal images then calibrate alone.",
        ),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Add what a table labels, such as the review page exports: columns path and label (normal or "
            "anomalous).",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="Write here; the model itself if not given.")
    ] = None,
    roi: NewRoi = None,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Add normal images and labelled anomalies to a model, without the images that it was trained on."""
    from anomaly_cli.tables.labels import labelled_files
    from anomaly_cli.training.update import update as update_model

    labelled = ([], []) if labels is None else labelled_files(labels)
    images, anomalous = [*paths_of(normal), *labelled[0]], [*paths_of(anomalies), *labelled[1]]
    check_named([*images, *anomalous])
    with console.progress(quiet) as progress:
        report = update_model(
            model,
            images,
            anomalies=anomalous,
            out=out,
            roi=roi,
            device=device,
            progress=progress,
        )
    if not quiet:
        summarise_update(report)
