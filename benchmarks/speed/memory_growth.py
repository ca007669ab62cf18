"""Measure memory and time of commands on more and more files: `python -m benchmarks.speed.memory_growth`.

Each command is a process of its own. This module imports no torch: a child's peak counts the pages that it shares
with its parent before it becomes another program.
"""

from __future__ import annotations

import argparse
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from benchmarks.accuracy.textures import write_distinct

NORMALS = 30  # of the model that scores
TOP = "20"  # pictures of `heatmap` and `report`
COMMAND = [sys.executable, "-c", "from anomaly_cli.cli import app; app()"]
COMMANDS = ("score", "resume", "list", "heatmap", "report", "train")
KILLED_AT = 0.9  # of the files are in the journal when the run that `resume` takes up is killed
MEGABYTE = 1024  # of getrusage, which counts in kB
POLL_S = 0.2  # between checks of a growing journal


@dataclass(frozen=True)
class Cost:
    """Peak of the resident memory of a process in MB, and how long it ran."""

    peak_mb: float
    seconds: float


def cost_of(*arguments: str | Path) -> Cost:
    """Run `anomaly` and measure it.

    Raises:
        RuntimeError: the command failed.
    """
    start = time.perf_counter()
    process = subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise RuntimeError(f"anomaly {arguments[0]} ended with {process.returncode}")
    return Cost(usage.ru_maxrss / MEGABYTE, time.perf_counter() - start)


def kill_half_way(journal: Path, rows: int, *arguments: str | Path) -> None:
    """Run `anomaly` and kill it once its journal has so many rows, or let it end."""
    with subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and _row_count(journal) < rows:
            time.sleep(POLL_S)
        process.kill()


def _row_count(journal: Path) -> int:
    try:  # as if nobody could write to it, since the run has locked it
        with closing(sqlite3.connect(f"{journal.absolute().as_uri()}?immutable=1", uri=True)) as database:
            count: int = database.execute("SELECT count(*) FROM finished").fetchone()[0]
    except sqlite3.Error:  # not there yet, or in the middle of a write
        return 0
    return count


def measure(command: str, files: Path, count: int, model: Path, options: Sequence[str]) -> Cost:
    """Run one of `COMMANDS` on a folder of `count` files; what reads a table scores first where there is none.

    Args:
        command: which.
        files: folder.
        count: of its files.
        model: file.
        options: of `anomaly train`.
    """
    table = files.with_suffix(".csv")
    score = ("score", files, "--model", model, "--out", table)
    if command == "train":
        return cost_of("train", files, "--model", files.with_suffix(".safetensors"), *options)
    if command == "score":
        return cost_of(*score)
    if command == "resume":
        kill_half_way(table.with_name(table.name + ".journal"), round(KILLED_AT * count), *score, "--resume")
        return cost_of(*score, "--resume")
    if not table.exists():
        cost_of(*score)
    arguments: dict[str, tuple[str | Path, ...]] = {
        "list": (table, "--flagged"),
        "heatmap": ("--scores", table, "--top", TOP, "--model", model, "--out", files.with_suffix(".heatmaps")),
        "report": (table, "--top", TOP, "--model", model, "--out", files.with_suffix(".html")),
    }
    return cost_of(command, *arguments[command])


def bytes_a_file(few: tuple[int, Cost], many: tuple[int, Cost]) -> float:
    """Growth of the peak from few files to many, per additional file."""
    return (many[1].peak_mb - few[1].peak_mb) * MEGABYTE**2 / (many[0] - few[0])


def main() -> None:
    """Measure and print every peak, and how much each command needs per additional file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", type=int, nargs="+", default=[500, 5000], help="files, from few to many")
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=["score"])
    parser.add_argument("--side", type=int, default=256, help="pixels, of the files")
    parser.add_argument("--train", nargs=argparse.REMAINDER, default=[], help="then options of `anomaly train`")
    args = parser.parse_args()
    costs: dict[str, list[tuple[int, Cost]]] = {command: [] for command in args.commands}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = folder / "model.safetensors"
        write_distinct(folder / "normal", NORMALS, args.side)
        cost_of("train", folder / "normal", "--model", model, *args.train)
        for count in args.counts:
            write_distinct(folder / str(count), count, args.side, seed=1)
            for command, measured in costs.items():
                measured.append((count, cost := measure(command, folder / str(count), count, model, args.train)))
                print(f"{command:8}{count:7d} files: peak {cost.peak_mb:6.0f} MB {cost.seconds:7.0f} s", flush=True)
    for command, measured in costs.items():
        if len(measured) > 1:
            ratio = measured[-1][1].peak_mb / measured[0][1].peak_mb
            print(f"{command:8}{bytes_a_file(measured[0], measured[-1]):6.0f} bytes per file, ratio {ratio:.3f}")


if __name__ == "__main__":
    main()
