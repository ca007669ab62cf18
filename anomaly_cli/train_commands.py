"""The commands that make or describe a model: parse, call the pipeline, print."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from anomaly_cli import console
from anomaly_cli.command_options import Device, ModelFile, Quiet
from anomaly_cli.config import DetectorConfig, Effort

DEFAULTS = DetectorConfig()


def train(
    normal: Annotated[list[Path], typer.Argument(metavar="NORMAL_DIR...", help="Folders or files of normal images.")],
    model: ModelFile = Path("anomaly.safetensors"),
    anomalies: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="Known anomalous images; they shape the distance, never the memory."),
    ] = None,
    backbone: Annotated[
        str, typer.Option(metavar="NAME", help="embedded, scratch, or a torchvision model such as resnet18.")
    ] = DEFAULTS.backbone,
    weights: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Weights of a torchvision backbone, instead of a download."),
    ] = None,
    effort: Annotated[Effort, typer.Option(help="How much time training may take.")] = DEFAULTS.effort,
    image_size: Annotated[
        int,
        typer.Option(metavar="PIXELS", help="Images are resized to this many pixels squared, aspect kept."),
    ] = DEFAULTS.image_size,
    prototypes: Annotated[int, typer.Option(metavar="N", help="Upper limit a scale.")] = DEFAULTS.prototypes,
    seed: Annotated[int, typer.Option(metavar="N", help="Same images, settings and seed give the same model.")] = (
        DEFAULTS.seed
    ),
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Learn what normal looks like from a folder of normal images."""
    config = DetectorConfig(backbone=backbone, image_size=image_size, prototypes=prototypes, effort=effort, seed=seed)
    from anomaly_cli import pipeline

    with console.progress(quiet) as progress:
        report = pipeline.train(
            normal,
            model,
            config,
            anomalies=anomalies or [],
            weights=weights,
            device=device,
            progress=progress,
        )
    if not quiet:
        console.summarise_training(report)


def info(
    model: Annotated[
        Path, typer.Argument(metavar="[MODEL]", envvar="ANOMALY_MODEL", help="Model file.", show_default=True)
    ] = Path("anomaly.safetensors"),
) -> None:
    """Say what a model file was trained on, when, with which settings."""
    from anomaly_cli import pipeline

    for line in console.describe_model(model, pipeline.info(model)):
        typer.echo(console.escaped(line, sys.stdout.encoding))
