"""What a person reads on stderr: progress while working, summaries afterwards; stdout is never touched."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from anomaly_cli.detector.scales import scale_title
from anomaly_cli.streams import redirect_to_null

if TYPE_CHECKING:
    from anomaly_cli.tables.row import Row


PLAIN_INTERVAL_S = 5.0  # between progress lines where there is no terminal
WORST_SHOWN = 5
NAMES_SHOWN = 3
KINDS_SHOWN = 8
CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))}


class ProgressCallback(Protocol):
    """How workflows report progress: phase, images done, images in total."""

    def __call__(self, phase: str, done: int, total: int, /) -> None:
        """Report progress."""


def print_stderr(text: str) -> None:
    """Print one line for people on stderr."""
    try:
        print(escaped(text, sys.stderr.encoding), file=sys.stderr, flush=True)
    except OSError:  # a log on a full disk or a reader that went away must not cost the table
        redirect_to_null(sys.stderr)


def escaped(text: str, encoding: str | None) -> str:
    """Escape what would break a line, control a terminal or have no encoding: file names may hold anything."""
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
            print_stderr(f"{phase}: {done} of {total}, {rate:.1f}/s, {(total - done) / rate:.0f} s left")
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
        print_stderr(
            f"warning: {plural(len(unreadable), 'file')} cannot be read and "
            f"{'is' if len(unreadable) == 1 else 'are'} left out:"
        )
        for path, reason in unreadable[:NAMES_SHOWN]:
            print_stderr(f"  {path}: {reason}")
        if len(unreadable) > NAMES_SHOWN:
            print_stderr(f"  and {len(unreadable) - NAMES_SHOWN} more")


def warn_unreliable_labels(reliability: float | None) -> None:
    """Say that labelled anomalies count less than they would, in a share of [0, 1]; None where there are none."""
    if reliability is not None and reliability < 1:
        print_stderr(
            "warning: the labelled anomalies can hardly be told from normal images, and count for "
            f"{100 * reliability:.0f} % of their weight: check that they are anomalous"
        )


def say_passed_over(passed_over: Mapping[str, int]) -> None:
    """Say how many files in folders were passed over, and of which kinds."""
    if passed_over:
        count = sum(passed_over.values())
        kinds = ", ".join(list(passed_over)[:KINDS_SHOWN]) + (", …" if len(passed_over) > KINDS_SHOWN else "")
        print_stderr(f"{plural(count, 'other file')} passed over: {kinds}")


def by_scale(counts: dict[str, int]) -> str:
    """Count prototypes: `2000 at stride 8, 40 at image level`."""
    return ", ".join(f"{count} at {scale_title(name)}" for name, count in counts.items())


def list_worst(readable: list[Row], unreadable: list[Row]) -> None:
    """Print the first rows of a ranking and those that could not be read."""
    for row in readable[:WORST_SHOWN]:
        print_stderr(f"  {row.score:8.2f}  {row.path}")
    for row in unreadable[:NAMES_SHOWN]:
        print_stderr(f"  unreadable  {row.path}: {row.reason}")
    if len(unreadable) > NAMES_SHOWN:
        print_stderr(f"  and {len(unreadable) - NAMES_SHOWN} more unreadable")
