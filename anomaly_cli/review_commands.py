"""The commands for the person who decides what a table means: parse, call the engine, print what came out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from anomaly_cli import console
from anomaly_cli.command_options import Device, ModelFile, Quiet

TOP = 2000  # pictures: about 20 MB, which every browser opens at once


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
