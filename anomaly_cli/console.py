"""What a person reads on stderr: progress while working, summaries afterwards; stdout is never touched."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from anomaly_cli.pipeline import HeatmapReport, ScoreReport, TrainReport

PLAIN_INTERVAL_S = 5.0  # between progress lines where there is no terminal
WORST_SHOWN = 5
NAMES_SHOWN = 3
CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))}


class ProgressCallback(Protocol):
    """How the pipeline reports: phase, images done, images in all."""

    def __call__(self, phase: str, done: int, total: int, /) -> None:
        """Report progress."""


def say(text: str) -> None:
    """Print one line for people on stderr."""
    print(escaped(text, sys.stderr.encoding), file=sys.stderr, flush=True)


def escaped(text: str, encoding: str | None) -> str:
    """Escape what would break a line, steer a terminal or have no encoding: file names hold anything."""
    encoding = encoding or "utf-8"
    return text.translate(CONTROLS).encode(encoding, "backslashreplace").decode(encoding)


class _PlainProgress:
    """One line every few seconds, for logs: phase, count, rate and time left."""

    def __init__(self) -> None:
        self.phase = ""
        self.started = self.spoken = time.monotonic()

    def __call__(self, phase: str, done: int, total: int, /) -> None:
        now = time.monotonic()
        if phase != self.phase:
            self.phase, self.started, self.spoken = phase, now, now
        elif now - self.spoken >= PLAIN_INTERVAL_S and 0 < done < total:
            rate = done / (now - self.started)
            say(f"{phase}: {done} of {total}, {rate:.1f}/s, {(total - done) / rate:.0f} s left")
            self.spoken = now


@contextmanager
def progress(quiet: bool) -> Iterator[ProgressCallback]:
    """Show progress: bars on a terminal, now and then a line elsewhere, nothing when quiet."""
    if quiet:
        yield lambda _phase, _done, _total: None
    elif not sys.stderr.isatty():
        yield _PlainProgress()
    else:
        with _bars() as callback:
            yield callback


@contextmanager
def _bars() -> Iterator[ProgressCallback]:
    from rich import progress as rich_progress
    from rich.console import Console

    columns = (
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn(),
        rich_progress.TextColumn("{task.fields[rate]}"),
        rich_progress.TimeRemainingColumn(),
    )
    tasks: dict[str, rich_progress.TaskID] = {}
    with rich_progress.Progress(*columns, console=Console(stderr=True), transient=True) as bars:

        def update(phase: str, done: int, total: int, /) -> None:
            if phase not in tasks:
                tasks[phase] = bars.add_task(phase, total=total, rate="")
            speed = bars.tasks[list(tasks).index(phase)].speed
            bars.update(tasks[phase], completed=done, total=total, rate=f"{speed:.0f}/s" if speed else "")

        yield update


def plural(count: int, noun: str) -> str:
    """Count a noun: `1 file`, `2 files`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def warn_unreadable(unreadable: list[tuple[Path, str]]) -> None:
    """Say how many files were left out, and name the first."""
    if unreadable:
        say(
            f"warning: {plural(len(unreadable), 'file')} cannot be read and "
            f"{'is' if len(unreadable) == 1 else 'are'} left out:"
        )
        for path, reason in unreadable[:NAMES_SHOWN]:
            say(f"  {path}: {reason}")
        if len(unreadable) > NAMES_SHOWN:
            say(f"  and {len(unreadable) - NAMES_SHOWN} more")


def summarise_training(report: TrainReport) -> None:
    """Say what was learned and what to type next."""
    warn_unreadable(report.unreadable)
    model = report.model
    detector = model.detector
    memories = ", ".join(
        f"{len(detector.scale(name).memory.prototypes)} at {'image level' if name == 'image' else 'stride ' + name}"
        for name in detector.scale_names
    )
    normals = model.calibration.normal_scores
    say(f"learned normal from {plural(model.provenance.images, 'image')} with the {model.config.backbone} backbone")
    say(f"prototypes: {memories}")
    say(
        f"held-out normal images score {normals[0]:.2f} to {normals[-1]:.2f}, median {normals[len(normals) // 2]:.2f}; "
        "1 is the limit of normal (99 %)"
    )
    say(f"saved {report.model_path}; next: anomaly score DIR --out scores.csv")


def summarise_scores(report: ScoreReport, out: str) -> None:
    """Say how many files, how many flagged by which rule, the worst, and where the table is."""
    readable, flagged = report.readable, report.flagged
    above = sum(1 for row in readable if row.score is not None and row.score >= 1)
    if report.threshold is None:
        rule = (
            f"false discovery rate {report.fdr:g}: expect about {report.fdr * len(flagged):.1f} normal ones among them"
        )
    else:
        rule = f"score ≥ {report.threshold:g}"
    say(f"{plural(len(report.rows), 'file')}: {len(flagged)} flagged ({rule}), {len(report.unreadable)} unreadable")
    smallest = 1 / (report.normal_count + 1)
    if report.threshold is None and len(flagged) < above:
        say(
            f"{above} score{'s' if above == 1 else ''} above the limit of normal: {report.normal_count} normal images "
            f"give p-values no smaller than {smallest:.2g}, too few to be sure at this rate; "
            "to flag them all the same use --threshold 1"
        )
    for row in readable[:WORST_SHOWN]:
        say(f"  {row.score:8.2f}  {row.path}")
    for row in report.unreadable[:NAMES_SHOWN]:
        say(f"  unreadable  {row.path}: {row.reason}")
    if len(report.unreadable) > NAMES_SHOWN:
        say(f"  and {len(report.unreadable) - NAMES_SHOWN} more unreadable")
    say(f"table: {out}")


def describe_model(path: Path, header: dict[str, Any]) -> Iterator[str]:
    """Describe a model file, a line each, for `anomaly info`."""
    provenance, config, calibration = header["provenance"], header["config"], header["calibration"]
    normals = calibration["normal_scores"]
    yield f"model         {path}, format {header['format']}"
    yield f"trained       {provenance['created']}"
    known = f"{provenance['anomalies']} known anomalous"
    yield f"on            {plural(provenance['images'], 'normal image')}, {known}"
    gain = provenance["head_gain"]
    yield f"stage 2       {f'on, cross-validated loss {gain:.0%} lower' if gain else 'off, plain distance'}"
    yield f"left out      {plural(provenance['unreadable'], 'unreadable file')}"
    yield f"training set  sha256 {provenance['training_set']}"
    yield f"settings      {', '.join(f'{name} {value}' for name, value in config.items())}"
    yield f"versions      {', '.join(f'{name} {value}' for name, value in provenance['versions'].items())}"
    for name, memory in header["memory"].items():
        what = "image level" if name == "image" else f"stride {name}"
        yield f"{what:<13} {plural(memory['prototypes'], 'prototype')} of {memory['channels']} channels"
    yield f"calibration   {plural(len(normals), 'held-out normal image')}, scores {normals[0]:.3f} to {normals[-1]:.3f}"
    yield f"p-values      no smaller than {1 / (len(normals) + 1):.2g}"


def summarise_heatmaps(report: HeatmapReport, out: Path) -> None:
    """Say how many overlays were drawn and where."""
    warn_unreadable(report.unreadable)
    say(f"{plural(len(report.written), 'overlay')} in {out}")
