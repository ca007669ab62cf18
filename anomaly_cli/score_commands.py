"""The commands that measure images with a model: parse, call the pipeline, print, choose the exit code."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from anomaly_cli import console
from anomaly_cli.command_options import Device, FilesFrom, Inputs, ModelFile, NulSeparated, Quiet, gather
from anomaly_cli.config import DEFAULT_FDR, RawMap
from anomaly_cli.table import TableFormat

GATE_TRIPPED = 3


class Gate(StrEnum):
    """What makes `score` exit with 3."""

    FLAGGED = "flagged"
    UNREADABLE = "unreadable"


def score(
    inputs: Inputs = None,
    model: ModelFile = Path("anomaly.safetensors"),
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE|-", help="Table to write; - for stdout.")] = Path(
        "scores.csv"
    ),
    table_format: Annotated[
        TableFormat | None,
        typer.Option("--format", help="Instead of the one that the suffix of --out names."),
    ] = None,
    fdr: Annotated[
        float, typer.Option(metavar="RATE", help="Flag so that at most this share of the flagged is normal.")
    ] = DEFAULT_FDR,
    threshold: Annotated[
        float | None,
        typer.Option(metavar="SCORE", help="Flag scores from here on instead; 1 = limit of normal."),
    ] = None,
    fail_on: Annotated[list[Gate] | None, typer.Option(help="Exit with 3 if there is any; may be repeated.")] = None,
    files_from: FilesFrom = None,
    null: NulSeparated = False,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Rank images by how far they deviate from normal and write the table."""
    paths = gather(inputs, files_from, null)
    from anomaly_cli import pipeline

    target = None if out == Path("-") else out
    chosen_format = pipeline.check_output(target, table_format)
    with console.progress(quiet) as progress:
        report = pipeline.score(paths, model, fdr=fdr, threshold=threshold, device=device, progress=progress)
    pipeline.write_scores(report, target, chosen_format)
    if not quiet:
        console.summarise_scores(report, "stdout" if target is None else os.fspath(target))
    tripped = {Gate.FLAGGED: report.flagged, Gate.UNREADABLE: report.unreadable}
    if any(tripped[gate] for gate in fail_on or []):
        raise typer.Exit(GATE_TRIPPED)


def heatmap(
    inputs: Inputs = None,
    model: ModelFile = Path("anomaly.safetensors"),
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder for the pictures.")] = Path(
        "heatmaps"
    ),
    top: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Only the N most anomalous; all if not given.")
    ] = None,
    scores: Annotated[
        Path | None,
        typer.Option(metavar="TABLE", help="Table of `score`: draw what it lists, score nothing again."),
    ] = None,
    raw: Annotated[
        RawMap | None, typer.Option(help="Also save the map itself: png16 (1000 = limit of normal) or npy.")
    ] = None,
    files_from: FilesFrom = None,
    null: NulSeparated = False,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Draw where images deviate: an overlay a file, one colour scale for all."""
    paths = gather(inputs, files_from, null, required=scores is None)
    from anomaly_cli import pipeline

    with console.progress(quiet) as progress:
        report = pipeline.heatmap(paths, model, out, top=top, scores=scores, raw=raw, device=device, progress=progress)
    if not quiet:
        console.summarise_heatmaps(report, out)
