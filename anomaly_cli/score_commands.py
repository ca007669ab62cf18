"""The commands that measure images with a model: parse, call the pipeline, print, choose the exit code."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from anomaly_cli import console, standard_streams
from anomaly_cli.command_options import (
    DEFAULTS,
    BackboneName,
    Device,
    Exclude,
    FilesFrom,
    Format,
    ImageSize,
    Include,
    Inputs,
    ModelFile,
    NulSeparated,
    Out,
    Prototypes,
    Quiet,
    Seed,
    Weights,
    check_local,
    gather,
    patterns_of,
)
from anomaly_cli.config import DEFAULT_FDR, DetectorConfig, Engine, FlagRule, RawMap, Rule
from anomaly_cli.errors import ConfigError
from anomaly_cli.stream_commands import Sources, check_whole, stream_scores
from anomaly_cli.table import is_written_directly

if TYPE_CHECKING:
    from anomaly_cli.journal import Journal
    from anomaly_cli.pipeline import ScoreReport
    from anomaly_cli.table import TableFormat
    from anomaly_cli.verdict import Gate, Verdict

GATE_TRIPPED = 3
STDOUT = Path("-")


Fdr = Annotated[
    float | None,
    typer.Option(
        metavar="RATE",
        help="Flag so that at most this share of the flagged is normal.",
        show_default=f"{DEFAULT_FDR}, where no other rule is given",
    ),
]
Threshold = Annotated[
    float | None, typer.Option(metavar="SCORE", help="Flag scores from here on instead; 1 = limit of normal.")
]
FlagTop = Annotated[int | None, typer.Option("--top", metavar="N", help="Flag the N most anomalous instead.")]
MaxFalseAlarms = Annotated[
    float | None,
    typer.Option(metavar="N", help="Flag so that at most N normal images of this run are expected among the flagged."),
]
FailOn = Annotated[
    list[str] | None,
    typer.Option(
        metavar="GATE",
        help="Exit with 3 if this holds: flagged, flagged>N, flagged>N%, the same with unreadable, or drift; "
        "may be repeated.",
    ),
]
NoQuality = Annotated[
    bool,
    typer.Option("--no-quality", help="Leave out the columns on brightness, sharpness and copies, and do not measure."),
]
Summary = Annotated[
    Path | None, typer.Option(metavar="FILE|-", help="Also write the verdict on the batch as JSON; - for stdout.")
]


ScoreOut = Annotated[
    Path | None,
    typer.Option(
        "--out",
        "-o",
        metavar="FILE|-",
        help="Table to write; - for stdout.",
        show_default="scores.csv, - with --stream",
    ),
]
Stream = Annotated[
    bool,
    typer.Option(
        "--stream",
        help="Write each row as soon as it is known, as JSON Lines in the order of arrival, without rank and q_value; "
        "flagged is score ≥ --threshold (1). With --files-from - a live filter.",
    ),
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume", help="Keep a journal beside the table, so that the same command goes on where it was killed."
    ),
]

EngineName = Annotated[
    Engine,
    typer.Option(
        "--engine",
        help="Measure on this machine, or with ray on all machines of a Ray cluster: the one of RAY_ADDRESS or "
        "`ray start`, else a local one. Every machine must reach the images by the same paths or URLs.",
    ),
]


def score(
    inputs: Inputs = None,
    model: ModelFile = Path("anomaly.safetensors"),
    out: ScoreOut = None,
    table_format: Format = None,
    fdr: Fdr = None,
    threshold: Threshold = None,
    top: FlagTop = None,
    max_false_alarms: MaxFalseAlarms = None,
    no_quality: NoQuality = False,
    summary: Summary = None,
    fail_on: FailOn = None,
    files_from: FilesFrom = None,
    null: NulSeparated = False,
    include: Include = None,
    exclude: Exclude = None,
    stream: Stream = False,
    resume: Resume = False,
    engine: EngineName = Engine.LOCAL,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Rank images by how far they deviate from normal and write the table."""
    patterns = patterns_of(include, exclude)
    if stream:
        if engine is not Engine.LOCAL:
            raise ConfigError(f"--stream scores on this machine as names arrive, it does not go with --engine {engine}")
        whole = {"--fdr": fdr, "--top": top, "--max-false-alarms": max_false_alarms, "--summary": summary}
        check_whole(whole | {"--fail-on": fail_on, "--resume": resume or None}, table_format)
        limit = FlagRule(Rule.THRESHOLD, 1 if threshold is None else threshold)
        sources = Sources(inputs, files_from, null, patterns)
        stream_scores(sources, model, None if out in (None, STDOUT) else out, limit, device=device, quiet=quiet)
        return
    out = out or Path("scores.csv")
    rule = FlagRule.choose(
        {Rule.FDR: fdr, Rule.THRESHOLD: threshold, Rule.TOP: top, Rule.MAX_FALSE_ALARMS: max_false_alarms}
    )
    if out == summary == STDOUT:
        raise ConfigError("--out - and --summary - cannot both go to stdout")
    paths = gather(inputs, files_from, null)
    from anomaly_cli import pipeline, verdict

    gates = [verdict.Gate.parse(text) for text in fail_on or []]
    target = None if out == STDOUT else out
    chosen_format = pipeline.check_output(target, table_format)
    pipeline.check_target(None if summary == STDOUT else summary)
    if resume:
        check_local(paths)
    with _journal(resume, target, model, device, engine, with_quality=not no_quality) as journal:
        with console.progress(quiet) as progress:
            report = pipeline.score(
                paths,
                model,
                rule=rule,
                patterns=patterns,
                journal=journal,
                with_quality=not no_quality,
                device=device,
                engine=engine,
                progress=progress,
            )
        _write(report, target, chosen_format, summary)
        if journal is not None:
            journal.remove()
    if not quiet:
        if journal is not None and journal.resumed:
            console.say(f"resumed: {journal.resumed} of {console.plural(len(report.rows), 'file')} were done already")
        console.summarise_scores(report, "stdout" if target is None else os.fspath(target))
    _check_gates(gates, report.verdict)


def _write(report: ScoreReport, target: Path | None, table_format: TableFormat, summary: Path | None) -> None:
    from anomaly_cli import pipeline, verdict

    try:
        pipeline.write_scores(report, target, table_format)
        if summary is not None:
            verdict.write_verdict(report.verdict, None if summary == STDOUT else summary)
    except BrokenPipeError:  # a reader such as `head` has seen enough; the gates are judged all the same
        standard_streams.let_go_of_stdout()


@contextmanager
def _journal(
    resume: bool, target: Path | None, model: Path, device: str, engine: Engine, *, with_quality: bool
) -> Iterator[Journal | None]:
    if not resume:
        yield None
        return
    if target is None or is_written_directly(target):
        raise ConfigError("--resume keeps its journal beside the table: name a file with --out")
    from anomaly_cli import pipeline

    with pipeline.open_journal_of(target, model, device, with_quality=with_quality, engine=engine) as journal:
        if journal.discarded:
            console.say(
                f"warning: {journal.path} is of another model, version or machine: starting over, "
                f"{console.plural(journal.discarded, 'finished file')} given up"
            )
        yield journal


def _check_gates(gates: list[Gate], verdict: Verdict) -> None:
    """Exit with 3 where a gate trips, and say which."""
    tripped = [(gate, why) for gate in gates if (why := gate.tripped_by(verdict))]
    for gate, why in tripped:
        console.say(f"gate tripped: {gate.text} ({why})")
    if tripped:
        raise typer.Exit(GATE_TRIPPED)


def audit(
    inputs: Inputs = None,
    out: Out = Path("audit.csv"),
    table_format: Format = None,
    backbone: BackboneName = DEFAULTS.backbone,
    weights: Weights = None,
    image_size: ImageSize = DEFAULTS.image_size,
    prototypes: Prototypes = DEFAULTS.prototypes,
    seed: Seed = DEFAULTS.seed,
    files_from: FilesFrom = None,
    null: NulSeparated = False,
    include: Include = None,
    exclude: Exclude = None,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Rank the images of one folder by how rare they are in it: no normal folder, no model needed."""
    paths = gather(inputs, files_from, null)
    patterns = patterns_of(include, exclude)
    config = DetectorConfig(backbone=backbone, image_size=image_size, prototypes=prototypes, seed=seed)
    from anomaly_cli import auditing, pipeline

    target = None if out == Path("-") else out
    chosen_format = pipeline.check_output(target, table_format)
    with console.progress(quiet) as progress:
        report = auditing.audit(paths, config, weights=weights, patterns=patterns, device=device, progress=progress)
    auditing.write_audit(report, target, chosen_format)
    if not quiet:
        console.summarise_audit(report, "stdout" if target is None else os.fspath(target))


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
    include: Include = None,
    exclude: Exclude = None,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Draw where images deviate: an overlay a file, one colour scale for all."""
    paths = gather(inputs, files_from, null, required=scores is None)
    patterns = patterns_of(include, exclude)

    from anomaly_cli import drawing

    with console.progress(quiet) as progress:
        report = drawing.heatmap(
            paths, model, out, top=top, scores=scores, raw=raw, patterns=patterns, device=device, progress=progress
        )
    if not quiet:
        console.summarise_heatmaps(report, out)
