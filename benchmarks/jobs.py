"""What the tables share: options that name the sets, a fresh process a job, a CSV that is complete after each job.

Beside the CSV lies a JSON file with the command that made it and the machine, for `benchmarks.page.write_report`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import resource
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from anomaly_cli.config import DetectorConfig
from anomaly_cli.detector.checkpoint import library_versions
from anomaly_cli.files import atomic_output
from anomaly_cli.scoring.parallel import worker_count
from benchmarks.accuracy.datasets import AnomalySet, read_classes, read_packed, read_set, subsample

Job = TypeVar("Job")
Row = dict[str, str | int | float]
MEGABYTE = 1024  # of getrusage, which counts in kB
DATA_WORD = "BENCH"  # stands in the recorded command for the folder that the sets lie in
MAX_TRAIN, MAX_TEST, SEEDS = 250, 150, 3


def set_options(description: str | None) -> argparse.ArgumentParser:
    """Describe the options that every table has."""
    options = argparse.ArgumentParser(description=description)
    options.add_argument("--data", type=Path, nargs="+", default=[], help="folders in MVTec layout, or with labels.csv")
    options.add_argument("--cifar", type=Path, help="FILE of FILE.npz and FILE.bin: each class once as normal")
    options.add_argument("--classes", type=Path, help="folder of train/CLASS and test/CLASS: each class once as normal")
    options.add_argument(
        "--only", nargs="+", metavar="CLASS", help="of the classes, those to be once normal; all if none"
    )
    options.add_argument("--out", type=Path, required=True, help="CSV; beside it goes a JSON file with the command")
    options.add_argument("--seeds", type=int, default=SEEDS, help="how many, from 0")
    options.add_argument("--max-train", type=int, default=MAX_TRAIN, help="normal images to train on")
    options.add_argument(
        "--max-test", type=int, default=MAX_TEST, help="test images, of the normal and of the anomalous"
    )
    return options


def sets_of(args: argparse.Namespace, scratch: Path) -> list[AnomalySet]:
    """Read the sets that the options name; packed pictures are unpacked below `scratch`."""
    sets = [read_set(folder) for folder in args.data]
    folders = [] if args.classes is None else [args.classes]
    if args.cifar is not None:
        folders.append(scratch / args.cifar.name)
        read_packed(args.cifar).write_folders(folders[-1], args.max_train, args.max_test)
    for folder in folders:
        names = sorted(each.name for each in (folder / "train").iterdir() if each.is_dir())
        sets += [read_classes(folder, name) for name in args.only or names]
    return sets


@dataclass(frozen=True)
class Training:
    """A training on one draw of a set."""

    data: AnomalySet
    config: DetectorConfig


def trainings_of(args: argparse.Namespace, sets: list[AnomalySet]) -> Iterator[Training]:
    """Train once a set and seed, at the default settings."""
    for data in sets:
        for seed in range(args.seeds):
            yield Training(subsample(data, args.max_train, args.max_test, seed), DetectorConfig(seed=seed))


def run_table(
    args: argparse.Namespace,
    measure: Callable[[Job], list[Row]],
    jobs_of: Callable[[argparse.Namespace, list[AnomalySet]], Iterable[Job]],
) -> pd.DataFrame:
    """Measure all jobs that the options ask for, as `measure_all` does."""
    with tempfile.TemporaryDirectory() as scratch:
        return measure_all(measure, jobs_of(args, sets_of(args, Path(scratch))), args.out)


def peak_mb() -> float:
    """Peak of the resident memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MEGABYTE


def measure_all(measure: Callable[[Job], list[Row]], jobs: Iterable[Job], out: Path) -> pd.DataFrame:
    """Measure every job and keep the table on disk complete after each.

    A run that was ended continues where it is started again by the same command with the same code: until all jobs are
    measured, their rows lie in a JSON file beside the table as well.

    Args:
        measure: a function of a module, since each job runs in a fresh process: the peak of memory is its own.
        jobs: that can be pickled, in the same order each time.
        out: CSV.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    record_command(out)
    unfinished = out.with_suffix(".unfinished.json")
    run: dict[str, Any] = {"command": sys.argv, "code": code_digest()}
    done: list[list[Row]] = _finished_jobs(unfinished, run)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, max_tasks_per_child=1) as pool:
        for measured in pool.map(measure, islice(jobs, len(done), None)):
            done.append(measured)
            with atomic_output(unfinished) as file:
                file.write(json.dumps(run | {"rows": done}, default=float).encode())
            _table(done).to_csv(out, index=False, float_format="%.5g")
            for row in measured:
                print(one_line(row), flush=True)
    unfinished.unlink(missing_ok=True)
    return _table(done)


def _finished_jobs(unfinished: Path, run: dict[str, Any]) -> list[list[Row]]:
    """Read the rows of the jobs that an earlier start of this run finished."""
    if not unfinished.exists():
        return []
    saved: dict[str, Any] = json.loads(unfinished.read_text("utf-8"))
    rows: list[list[Row]] = saved.pop("rows")
    if saved != run:
        return []
    print(f"continued: {len(rows)} measurements were done already", flush=True)
    return rows


def _table(done: list[list[Row]]) -> pd.DataFrame:
    return pd.DataFrame([row for rows in done for row in rows])


def code_digest() -> str:
    """Hash the code of the package and of the benchmarks: rows of another version do not belong in the same table."""
    root = Path(__file__).parents[1]
    files = sorted(path for folder in ("anomaly_cli", "benchmarks") for path in (root / folder).rglob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def one_line(row: Row) -> str:
    """Show a row as `name value` pairs."""
    return ", ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in row.items()
    )


def record_command(out: Path) -> None:
    """Write what was called, and where, beside the table."""
    facts = {"command": command_line(sys.argv), "cores": worker_count(), "versions": library_versions()}
    out.with_suffix(".json").write_text(json.dumps(facts, indent=2) + "\n", "utf-8")


def command_line(arguments: list[str]) -> str:
    """Write a command as the page quotes it: the module, inputs of other folders below `DATA_WORD`, output by name."""
    script = Path(arguments[0])
    words = ["python -m", f"benchmarks.{script.parent.name}.{script.stem}"]
    for before, word in pairwise(arguments):
        name = Path(word).name
        shown = name if before == "--out" else f"{DATA_WORD}/{name}" if "/" in word else word
        words.append(shlex.quote(shown))
    return " ".join(words)


def means_by_set(results: pd.DataFrame, index: list[str], figure: str) -> pd.DataFrame:
    """Average a figure over the seeds, a column a set, and over the sets in the last column.

    Args:
        results: a row a run, with a column `set`, those of `index` and the figure.
        index: what tells one row of the table from another; they stay in the order of first appearance.
        figure: name of a column.
    """
    means = results.pivot_table(index=index, columns="set", values=figure, sort=False)
    return means.assign(mean=means.mean(axis=1))


def print_means(results: pd.DataFrame, index: list[str], figure: str = "image_auroc") -> None:
    """Print `means_by_set`."""
    with pd.option_context("display.width", 200, "display.max_columns", None, "display.max_rows", None):
        print(f"{figure}\n{means_by_set(results, index, figure).round(3).to_string()}")
