"""Score files as their names arrive: one row per file, in the order of arrival; nothing is ranked or printed."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from stat import S_ISREG
from typing import NamedTuple

from anomaly_cli.config import DEFAULT_REGIONS, RegionRule
from anomaly_cli.detector.checkpoint import load_model
from anomaly_cli.detector.devices import choose_device
from anomaly_cli.errors import ConfigError, InputError, UnreadableImageError
from anomaly_cli.files import os_errors_as_output_error
from anomaly_cli.images.find import collect, find_images
from anomaly_cli.images.patterns import EVERY_FILE, PathPatterns
from anomaly_cli.scoring.measure import Scorer, choose_roi
from anomaly_cli.scoring.parallel import parallel_map, worker_count
from anomaly_cli.scoring.rows import make_row
from anomaly_cli.tables.row import Row

FRESH_S = 2.0  # a file changed this recently may be half written
PATIENCE_S = 10.0  # longest wait for a file that keeps changing
RETRY_S = 0.1


class Stream(NamedTuple):
    """Rows as they become known, and the names of their scales."""

    rows: Iterator[Row]
    scale_names: tuple[str, ...]


def open_stream(
    inputs: Sequence[Path],
    iter_paths: Iterable[Path],
    model_path: Path,
    *,
    threshold: float,
    patterns: PathPatterns = EVERY_FILE,
    roi: Path | None = None,
    device: str = "auto",
    region_rule: RegionRule = DEFAULT_REGIONS,
) -> Stream:
    """Load the model; the rows of the inputs come first, then those of the arriving files.

    Raises:
        InputError: an input does not exist; a missing file among the arriving ones gets a row.
    """
    chosen = choose_device(device)
    model = load_model(model_path, chosen)
    known = collect(inputs, patterns) if inputs else []
    scorer = Scorer(model, [chosen], roi=choose_roi(model, roi, known), region_rule=region_rule)
    paths = chain(known, find_arriving(iter_paths, patterns))
    return Stream(stream_rows(paths, scorer, threshold), scorer.model.detector.column_names)


def stream_rows(paths: Iterable[Path], scorer: Scorer, threshold: float) -> Iterator[Row]:
    """Score each file as soon as its name is known, without waiting for the next name.

    Args:
        paths: files; they may take their time to arrive.
        scorer: measures them.
        threshold: scores from here on are flagged; what depends on the whole run (rank, q-value) stays unknown.

    Yields:
        One row per file, in the order of arrival; also for a file that is missing or cannot be read.
    """

    def measure(path: Path) -> Row:
        try:
            measured = scorer.measure_one(path)
        except ConfigError as error:  # no usable region of interest: it must not end the stream
            measured = UnreadableImageError(str(error))
        return make_row(path, measured, scorer.model.calibration, scorer.region_rule)

    # Tiles of one picture are measured in parallel; several pictures at a time would not fit in memory.
    workers = worker_count() if scorer.model.config.smallest_defect is None else 1
    for row in parallel_map(partial(retry_while_changing, measure), paths, workers):
        yield replace(row, flagged=row.score is not None and row.score >= threshold)


def find_arriving(names: Iterable[Path], patterns: PathPatterns = EVERY_FILE) -> Iterator[Path]:
    """Search the folders among the names, one by one; whatever else is named is passed on."""
    for name in names:
        try:
            yield from find_images([name], patterns)
        except InputError:  # missing, or a folder that cannot be listed: its row gives the reason
            yield name


@contextmanager
def open_appending(out: Path | None) -> Iterator[Callable[[bytes], None]]:
    """Open a file, or stdout where `out` is None; yield what appends a line to it at once.

    Raises:
        OutputError: `out` cannot be written.
        BrokenPipeError: the reader of a pipe went away.
    """
    name = "stdout" if out is None else str(out)
    with ExitStack() as stack:
        with os_errors_as_output_error(name):
            file = sys.stdout.buffer if out is None else stack.enter_context(out.open("ab", buffering=0))

        def append(line: bytes) -> None:
            with os_errors_as_output_error(name):
                file.write(line)
                file.flush()

        yield append


def retry_while_changing(measure: Callable[[Path], Row], path: Path) -> Row:
    """Measure a file; retry while it cannot be read and is still being written."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        row = measure(path)
        if row.status == "ok" or time.monotonic() > deadline or not _changed_just_now(path):
            return row
        time.sleep(RETRY_S)


def _changed_just_now(path: Path) -> bool:
    try:
        status = path.stat()
    except (OSError, ValueError):  # gone, or no possible name
        return False
    # A modification time in the future, from another clock or a camera, does not count as just now.
    return S_ISREG(status.st_mode) and abs(time.time() - status.st_mtime) < FRESH_S
