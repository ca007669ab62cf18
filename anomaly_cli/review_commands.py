"""The commands for the person who decides what a table means: parse, call the engine, print what came out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from anomaly_cli import console
from anomaly_cli.command_options import Device, ModelFile, Quiet

STDOUT = Path("-")
TOP = 2000  # pictures: about 20 MB, which every browser opens at once
SHOWN_PROTOTYPES = 200  # a scale: ten rows
MAX_SHOWN_PROTOTYPES = 5000  # to be put in order their distances are compared, all with all


def report(
    table: Annotated[Path, typer.Argument(metavar="TABLE", help="Table of `score` or `audit`.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="Page to write.")] = Path("report.html"),
    model: ModelFile = Path("anomaly.safetensors"),
    top: Annotated[
        int, typer.Option(metavar="N", min=0, help="Pictures for the N most anomalous; the others are listed without.")
    ] = TOP,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Make one HTML page to look through a table, decide image by image and export the labels: no network needed."""
    from anomaly_cli.report import write_report

    with console.progress(quiet) as progress:
        written = write_report(table, model, out, top=top, device=device, progress=progress)
    if not quiet:
        console.summarise_page(written, out)


def evaluate(
    table: Annotated[Path, typer.Argument(metavar="TABLE", help="Table of `score` or `audit`.")],
    labels: Annotated[
        str,
        typer.Option(
            metavar="FILE|folders",
            help="Table with the columns path and label (normal or anomalous), such as the review page exports; or "
            "the word folders: images in folders called good or normal are normal, all others anomalous.",
        ),
    ],
    masks: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Masks called like the images, white where anomalous: the maps are evaluated, too."
        ),
    ] = None,
    model: ModelFile = Path("anomaly.safetensors"),
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE|-", help="Also write the figures as JSON; - for stdout.")
    ] = None,
    curves: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also draw ROC, precision and recall, and the scores: .png, .pdf or .svg."),
    ] = None,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Compare a table with labels: how good is the ranking, what are the flags worth."""
    from anomaly_cli import evaluation, pipeline

    target = None if out == STDOUT else out
    pipeline.check_target(target)
    with console.progress(quiet) as progress:
        result = evaluation.evaluate(
            table, labels, masks=masks, model_path=model, curves=curves, device=device, progress=progress
        )
    if out is not None:
        evaluation.write_evaluation(result, target)
    if not quiet:
        console.summarise_evaluation(result)


def prototypes(
    model: ModelFile = Path("anomaly.safetensors"),
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="Picture to write, a PNG.")] = Path(
        "prototypes.png"
    ),
    top: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=1,
            max=MAX_SHOWN_PROTOTYPES,
            help="Show the N of each scale that differ most from each other.",
        ),
    ] = SHOWN_PROTOTYPES,
    quiet: Quiet = False,
) -> None:
    """Draw what a model learned: the normal patches that it compares images with, scale by scale."""
    from anomaly_cli.prototypes import write_prototypes

    drawn = write_prototypes(model, out, top)
    if not quiet:
        console.say(f"prototypes drawn: {console.by_scale(drawn)}")
        console.say(f"picture: {out}")
