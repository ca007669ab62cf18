"""`anomaly score`: rank images by how far they deviate from normal, print a summary, choose the exit code."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from anomaly_cli import streams
from anomaly_cli.commands import console
from anomaly_cli.commands.console import list_worst, plural, print_stderr, say_passed_over
from anomaly_cli.commands.inputs import check_local, patterns_of, read_inputs
from anomaly_cli.commands.options import (
    Device,
    Exclude,
    FilesFrom,
    Format,
    Include,
    Inputs,
    MinArea,
    ModelFile,
    NewRoi,
    NulSeparated,
    Quiet,
    RegionThreshold,
)
from anomaly_cli.commands.score_stream import Outputs, Sources, check_whole, stream_scores
from anomaly_cli.config import DEFAULT_FDR, DEFAULT_REGIONS, MIN_BATCH, Engine, FlagRule, RegionRule, Rule
from anomaly_cli.detector.scales import scale_title
from anomaly_cli.errors import ConfigError
from anomaly_cli.files import is_written_directly
from anomaly_cli.outputs import Kind, Output, check_outputs
from anomaly_cli.tables.formats import TableFormat, format_of
from anomaly_cli.tables.region_table import RegionFile

if TYPE_CHECKING:
    from anomaly_cli.scoring.batch_verdict import Gate, Verdict
    from anomaly_cli.scoring.journal import Journal
    from anomaly_cli.scoring.score import ScoreReport


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
    float | None, typer.Option(metavar="SCORE", help="Flag scores from this one up instead; 1 = limit of normal.")
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

Regions = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE|-",
        help="Also write a table of all regions, one row each, by the suffix of its name; COCO for .coco.json.",
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
    typer.Option("--resume", help="Keep a journal beside the table, so that the same command continues after a kill."),
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
    format: Format = None,
    fdr: Fdr = None,
    threshold: Threshold = None,
    top: FlagTop = None,
    max_false_alarms: MaxFalseAlarms = None,
    no_quality: NoQuality = False,
    summary: Summary = None,
    regions: Regions = None,
    region_threshold: RegionThreshold = DEFAULT_REGIONS.threshold,
    min_area: MinArea = DEFAULT_REGIONS.min_area,
    fail_on: FailOn = None,
    files_from: FilesFrom = None,
    null: NulSeparated = False,
    include: Include = None,
    exclude: Exclude = None,
    roi: NewRoi = None,
    stream: Stream = False,
    resume: Resume = False,
    engine: EngineName = Engine.LOCAL,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Rank images by how far they deviate from normal and write the table."""
    sources = Sources(inputs, files_from, null, patterns_of(include, exclude), roi)
    region_file, region_rule = _regions(regions, region_threshold, min_area, stream=stream)
    if stream:
        whole = {"--fdr": fdr, "--top": top, "--max-false-alarms": max_false_alarms, "--summary": summary}
        check_whole(whole | {"--fail-on": fail_on, "--resume": resume or None}, out, format, engine)
        outputs = Outputs(None if out in (None, STDOUT) else out, regions)
        stream_scores(sources, model, outputs, threshold, region_rule=region_rule, device=device, quiet=quiet)
        return
    rules = {Rule.FDR: fdr, Rule.THRESHOLD: threshold, Rule.TOP: top, Rule.MAX_FALSE_ALARMS: max_false_alarms}
    options = _Options(
        model=model,
        out=out or Path("scores.csv"),
        table_format=format,
        summary=summary,
        regions=region_file,
        region_rule=region_rule,
        rule=FlagRule.choose(rules),
        with_quality=not no_quality,
        resume=resume,
        engine=engine,
        device=device,
    )
    _score_batch(sources, options, fail_on or [], quiet=quiet)


def _regions(
    regions: Path | None, threshold: float, min_area: int, *, stream: bool
) -> tuple[RegionFile | None, RegionRule]:
    """Choose which regions are kept and where they go; a stream writes them with its rows."""
    file = None if regions is None or stream else RegionFile.of(None if regions == STDOUT else regions)
    outlined = file is not None and file.kind is Kind.COCO
    return file, RegionRule(threshold=threshold, min_area=min_area, listed=regions is not None, outlined=outlined)


@dataclass(frozen=True, kw_only=True)
class _Options:
    """How a whole batch is scored and where the results go."""

    model: Path
    out: Path
    table_format: TableFormat | None
    summary: Path | None
    regions: RegionFile | None
    region_rule: RegionRule
    rule: FlagRule
    with_quality: bool
    resume: bool
    engine: Engine
    device: str

    @property
    def target(self) -> Path | None:
        """The file of the table; None for stdout."""
        return None if self.out == STDOUT else self.out

    def check(self, sources: Sources) -> None:
        """Refuse outputs that cannot be written; see `check_outputs`."""
        printed = {"--out": self.out == STDOUT, "--summary": self.summary == STDOUT}
        printed["--regions"] = self.regions is not None and self.regions.path is None
        first, second, *_ = [*(name for name, chosen in printed.items() if chosen), "", ""]
        if second:
            raise ConfigError(f"{first} - and {second} - cannot both go to stdout")
        outputs = [Output("--out", self.target, Kind.TABLE)]
        outputs.append(Output("--summary", None if self.summary == STDOUT else self.summary, Kind.VERDICT))
        if self.regions is not None:
            outputs.append(Output("--regions", self.regions.path, self.regions.kind))
        check_outputs(outputs, sources.files(self.model))


def _score_batch(sources: Sources, options: _Options, gates: list[str], *, quiet: bool) -> None:
    options.check(sources)
    table_format = format_of(options.target, options.table_format)
    paths = read_inputs(sources.inputs, sources.files_from, sources.null)
    if options.resume:
        check_local(paths)
    from anomaly_cli.scoring.batch_verdict import Gate
    from anomaly_cli.scoring.score import score as score_files

    parsed = [Gate.parse(text) for text in gates]
    with _journal(options, sources.roi) as journal:
        with console.progress(quiet) as progress:
            report = score_files(
                paths,
                options.model,
                rule=options.rule,
                patterns=sources.patterns,
                journal=journal,
                roi=sources.roi,
                with_quality=options.with_quality,
                device=options.device,
                engine=options.engine,
                region_rule=options.region_rule,
                tell=None if quiet else print_stderr,
                progress=progress,
            )
        _write(report, options, table_format)
        if journal is not None:
            journal.remove()
    if not quiet:
        if journal is not None and journal.resumed:
            print_stderr(f"resumed: {journal.resumed} of {plural(len(report.rows), 'file')} were done already")
        summarise_scores(report, "stdout" if options.target is None else os.fspath(options.target))
        if options.regions is not None:
            where = "stdout" if options.regions.path is None else os.fspath(options.regions.path)
            print_stderr(f"{plural(sum(row.regions or 0 for row in report.rows), 'region')}: {where}")
    _check_gates(parsed, report.verdict)


def _write(report: ScoreReport, options: _Options, table_format: TableFormat) -> None:
    from anomaly_cli.scoring.batch_verdict import write_verdict
    from anomaly_cli.scoring.score import write_scores

    try:
        write_scores(report, options.target, table_format)
        if options.regions is not None:
            options.regions.write(report.rows)
        if options.summary is not None:
            write_verdict(report.verdict, None if options.summary == STDOUT else options.summary)
    except BrokenPipeError:  # a reader such as `head` has seen enough; the gates are judged all the same
        streams.redirect_stdout_to_null()


@contextmanager
def _journal(options: _Options, roi: Path | None) -> Iterator[Journal | None]:
    if not options.resume:
        yield None
        return
    if options.target is None or is_written_directly(options.target):
        raise ConfigError("--resume keeps its journal beside the table: name a file with --out")
    from anomaly_cli.scoring.score import open_journal_of

    with open_journal_of(
        options.target,
        options.model,
        options.device,
        roi=roi,
        with_quality=options.with_quality,
        engine=options.engine,
        region_rule=options.region_rule,
    ) as journal:
        if journal.discarded:
            print_stderr(f"warning: {journal.path} {journal.discarded}")
        yield journal


def _check_gates(gates: list[Gate], verdict: Verdict) -> None:
    """Exit with 3 where a gate trips, and say which."""
    tripped = [(gate, why) for gate in gates if (why := gate.tripped_by(verdict))]
    for gate, why in tripped:
        print_stderr(f"gate tripped: {gate.text} ({why})")
    if tripped:
        raise typer.Exit(GATE_TRIPPED)


def summarise_scores(report: ScoreReport, out: str) -> None:
    """Print counts, expected false alarms, the verdict on the batch, the worst files and where the table is."""
    verdict, rule = report.verdict, report.rule
    print_stderr(
        f"{plural(verdict.files, 'file')}: {verdict.flagged} flagged ({_in_words(rule)}){_expectation(verdict)}; "
        f"{verdict.unreadable} unreadable"
    )
    above = sum(1 for row in report.readable if row.score is not None and row.score >= 1)
    if rule.kind in (Rule.FDR, Rule.MAX_FALSE_ALARMS) and verdict.flagged < above:
        print_stderr(
            f"{above} score{'s' if above == 1 else ''} above the limit of normal: {verdict.normal_images} normal "
            f"images give p-values no smaller than {verdict.smallest_p:.2g}, too few to be sure at this rate; "
            "to flag them all the same use --threshold 1"
        )
    below = sum(1 for row in report.flagged if row.score is not None and row.score < 1)
    if rule.kind is Rule.FDR and below:
        print_stderr(
            f"{below} of the flagged score{'s' if below == 1 else ''} below the limit of normal: where many files are "
            "anomalous, files with larger p-values are flagged at the same rate; --threshold 1 flags by score alone"
        )
    _judge_batch(verdict)
    say_passed_over(verdict.passed_over)
    list_worst(report.readable, report.unreadable)
    if report.copies:
        print_stderr(
            f"{plural(len(report.copies), 'file')} are copies or near-copies of another (column duplicate_group)"
        )
    print_stderr(f"table: {out}")


def _in_words(rule: FlagRule) -> str:
    words = {
        Rule.FDR: "false discovery rate {:g}",
        Rule.THRESHOLD: "score ≥ {:g}",
        Rule.TOP: "the {:g} most anomalous",
        Rule.MAX_FALSE_ALARMS: "at most {:g} false alarms expected",
    }
    return words[rule.kind].format(rule.value)


def _expectation(verdict: Verdict) -> str:
    if not verdict.flagged:
        return ""
    expected = round(verdict.expected_false_alarms)
    return f"; expect {f'about {expected}' if expected else 'fewer than 1'} of them to be normal"


def _judge_batch(verdict: Verdict) -> None:
    """Print the share of anomalies and whether the batch as a whole differs from the normal images."""
    share, low, high = verdict.anomaly_share, verdict.anomaly_share_low, verdict.anomaly_share_high
    drift_scale, drift_p_value = verdict.drift_scale, verdict.drift_p_value
    if share is None or low is None or high is None or drift_scale is None or drift_p_value is None:
        print_stderr(
            f"too few to judge the batch as a whole: {plural(verdict.readable, 'readable image')} and "
            f"{plural(verdict.normal_images, 'normal image')}, {MIN_BATCH} of each are needed"
        )
        return
    print_stderr(f"about {100 * share:.0f} % of the batch is anomalous (95 %: {100 * low:.0f} to {100 * high:.0f} %)")
    if verdict.drift:
        print_stderr(
            "warning: the batch as a whole differs from the normal images (drift, "
            f"{_p_in_words(drift_p_value)}, mostly at {scale_title(drift_scale)}): {_why_drifted(verdict)}? "
            "The figures above hold for new images from the same source only"
        )


def _why_drifted(verdict: Verdict) -> str:
    if verdict.drift_nearer:
        return "nearer than new images can be; was the model trained on these, or are they blurred"
    return "another camera, light, focus or compression"


def _p_in_words(p: float) -> str:
    return f"p = {p:.1g}" if p >= 1e-4 else "p < 0.0001"
