"""The commands that make or describe a model: parse, call the pipeline, print."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from anomaly_cli import console
from anomaly_cli.command_options import (
    DEFAULTS,
    BackboneName,
    Device,
    EffortLevel,
    Exclude,
    ImageSize,
    Include,
    ModelFile,
    Prototypes,
    Quiet,
    Seed,
    Weights,
    check_local,
    patterns_of,
)
from anomaly_cli.config import DetectorConfig, ExportFormat
from anomaly_cli.remote import paths_of
from anomaly_cli.table import write_to_stdout

ModelArgument = Annotated[
    Path, typer.Argument(metavar="[MODEL]", envvar="ANOMALY_MODEL", help="Model file.", show_default=True)
]


def train(
    normal: Annotated[list[str], typer.Argument(metavar="NORMAL_DIR...", help="Folders or files of normal images.")],
    model: ModelFile = Path("anomaly.safetensors"),
    anomalies: Annotated[
        list[str] | None,
        typer.Option(metavar="DIR", help="Known anomalous images; they shape the distance, never the memory."),
    ] = None,
    audit_normals: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also write a table of the normal images, each scored as if unseen."),
    ] = None,
    backbone: BackboneName = DEFAULTS.backbone,
    weights: Weights = None,
    effort: EffortLevel = DEFAULTS.effort,
    image_size: ImageSize = DEFAULTS.image_size,
    prototypes: Prototypes = DEFAULTS.prototypes,
    seed: Seed = DEFAULTS.seed,
    include: Include = None,
    exclude: Exclude = None,
    no_thumbnails: Annotated[
        bool,
        typer.Option(
            "--no-thumbnails", help="Keep no small pictures of parts of the normal images in the model: private data."
        ),
    ] = False,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Save what is done beside the model, so that the same command goes on where it was killed."
        ),
    ] = False,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Learn what normal looks like from a folder of normal images."""
    config = DetectorConfig(backbone=backbone, image_size=image_size, prototypes=prototypes, effort=effort, seed=seed)
    images, known = paths_of(normal), paths_of(anomalies)
    if resume:
        check_local([*images, *known])
    from anomaly_cli import distributed, pipeline

    quiet = quiet or distributed.rank_of_environment() > 0
    with console.progress(quiet) as progress:
        report = pipeline.train(
            images,
            model,
            config,
            anomalies=known,
            weights=weights,
            audit_normals=audit_normals,
            patterns=patterns_of(include, exclude),
            thumbnails=not no_thumbnails,
            resume=console.warn_discarded if resume else None,
            device=device,
            progress=progress,
        )
    if not quiet:
        console.summarise_training(report, audit_normals)


def update(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Model file to update.")],
    normal: Annotated[list[str] | None, typer.Argument(metavar="NORMAL...", help="Folders or files to add.")] = None,
    anomalies: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DIR",
            help="Known anomalous images to add; the new normal images then calibrate alone.",
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
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Add normal images and known anomalies to a model, without the images that it was trained on."""
    from anomaly_cli import updating
    from anomaly_cli.labels import labelled_files

    labelled = ([], []) if labels is None else labelled_files(labels)
    with console.progress(quiet) as progress:
        report = updating.update(
            model,
            [*paths_of(normal), *labelled[0]],
            anomalies=[*paths_of(anomalies), *labelled[1]],
            out=out,
            device=device,
            progress=progress,
        )
    if not quiet:
        console.summarise_update(report)


def export(
    model: ModelArgument = Path("anomaly.safetensors"),
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="File to write; if not given MODEL with the suffix .onnx."),
    ] = None,
    format: Annotated[ExportFormat, typer.Option("--format", help="What to write.")] = ExportFormat.ONNX,
    quiet: Quiet = False,
) -> None:
    """Write a model for programs without torch: pixels in, image score and anomaly map out, 1 = limit of normal.

    The file takes any number of images of one size at a time: float RGB in [0, 1] as (N, 3, H, W). H and W are free,
    multiples of 32, as the aspect ratio wants: the file lists them, and what else a program must know (docs/export.md).
    Opset 18. Needs pip install 'anomaly-cli[onnx]'.
    """
    from anomaly_cli.export import export as export_model

    report = export_model(model, out, format)
    if not quiet:
        side = report.image_size
        console.say(f"exported {report.out}: {report.size / 1e6:.1f} MB, for images of about {side} x {side} pixels")


def info(model: ModelArgument = Path("anomaly.safetensors")) -> None:
    """Say what a model file was trained on, when, with which settings."""
    from anomaly_cli import pipeline

    encoding = sys.stdout.encoding or "utf-8"
    lines = [console.escaped(line, encoding) + "\n" for line in console.describe_model(model, pipeline.info(model))]
    write_to_stdout("".join(lines).encode(encoding))
