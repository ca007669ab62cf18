"""The command line: parses, calls the pipeline, prints, chooses the exit code; imports nothing heavy."""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from anomaly_cli import console
from anomaly_cli.config import DEFAULT_FDR, DetectorConfig, Effort, RawMap
from anomaly_cli.errors import AnomalyError, ConfigError, InputError
from anomaly_cli.table import TableFormat

GATE_TRIPPED = 3
DEFAULTS = DetectorConfig()


class Gate(StrEnum):
    """What makes `score` exit with 3."""

    FLAGGED = "flagged"
    UNREADABLE = "unreadable"


class _ReportingGroup(TyperGroup):
    """Turn an `AnomalyError` from any subcommand into one line and its exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except AnomalyError as error:
            console.say(f"error: {error}")
            raise typer.Exit(error.exit_code) from error
        except BrokenPipeError as error:
            # The reader has gone; Python would complain again when it flushes stdout at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from error


app = typer.Typer(cls=_ReportingGroup, no_args_is_help=True, pretty_exceptions_enable=False)

ModelFile = Annotated[
    Path,
    typer.Option("--model", "-m", envvar="ANOMALY_MODEL", metavar="FILE", help="Model file.", show_default=True),
]
Inputs = Annotated[
    list[Path] | None, typer.Argument(metavar="INPUT...", help="Folders (searched recursively) or files.")
]
FilesFrom = Annotated[
    str | None,
    typer.Option("--files-from", metavar="FILE|-", help="Read more paths from a file, one a line."),
]
NulSeparated = Annotated[bool, typer.Option("--null", "-0", help="Paths of --files-from end with NUL, not newline.")]
Device = Annotated[
    str,
    typer.Option(envvar="ANOMALY_DEVICE", metavar="NAME", help="auto, cpu, cuda or cuda:N.", show_default=True),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Only errors on stderr.")]


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"anomaly {version('anomaly-cli')}")
        raise typer.Exit


@app.callback()
def _root(
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    """Audit folders of images: learn what normal looks like, rank what deviates, show where."""


@app.command()
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


@app.command()
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
    paths = _gather(inputs, files_from, null)
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


@app.command()
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
    paths = _gather(inputs, files_from, null, required=scores is None)
    from anomaly_cli import pipeline

    with console.progress(quiet) as progress:
        report = pipeline.heatmap(paths, model, out, top=top, scores=scores, raw=raw, device=device, progress=progress)
    if not quiet:
        console.summarise_heatmaps(report, out)


@app.command()
def info(
    model: Annotated[
        Path, typer.Argument(metavar="[MODEL]", envvar="ANOMALY_MODEL", help="Model file.", show_default=True)
    ] = Path("anomaly.safetensors"),
) -> None:
    """Say what a model file was trained on, when, with which settings."""
    from anomaly_cli import pipeline

    for line in console.describe_model(model, pipeline.info(model)):
        typer.echo(console.escaped(line, sys.stdout.encoding))


def _gather(inputs: list[Path] | None, files_from: str | None, null: bool, *, required: bool = True) -> list[Path]:
    """Join the paths of the command line with those of `--files-from`."""
    paths = list(inputs or [])
    if files_from is not None:
        paths += _listed(files_from, b"\0" if null else b"\n")
    elif null:
        raise ConfigError("-0 goes with --files-from")
    if required and not paths:
        if files_from is None:
            raise ConfigError("name a folder or file to read, or use --files-from")
        raise InputError(f"{'stdin' if files_from == '-' else files_from} lists no path")
    return paths


def _listed(source: str, separator: bytes) -> list[Path]:
    try:
        content = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {source}: {error.strerror}") from error
    return [Path(os.fsdecode(name)) for name in content.split(separator) if name]


if __name__ == "__main__":
    app()
