"""Score malformed files with the real command: `python -m benchmarks.robustness.malformed --files 2000 --seeds 0 1`.

Exits with 1 where a run crashed, lost a file, or took longer than `SLOWEST_S` over one of them. This module imports no
torch: a child's peak counts the pages that it shares with its parent before it becomes another program.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from benchmarks.accuracy.textures import write_textures
from benchmarks.robustness.malformed_files import write_malformed

SLOWEST_S = 5.0  # that reading one file may take
NORMALS = 20
IMAGE_SIZE = 128  # pixels
MEGABYTE = 1024  # of getrusage, which counts in kB
COMMAND = [sys.executable, "-c", "from anomaly_cli.cli import app; app()"]
# The command itself, with a clock around the reading of each file; waiting for the other threads counts.
TIMED = """
import json, os, time
from anomaly_cli.cli import app
from anomaly_cli.scoring import pixels
load, took = pixels.load_image, {}
def timed(path, *arguments, **options):
    started = time.perf_counter()
    try:
        return load(path, *arguments, **options)
    finally:
        took[path.name] = time.perf_counter() - started
pixels.load_image = timed
try:
    app()
finally:
    with open(os.environ["TIMES"], "w") as file:
        json.dump(took, file)
"""


@dataclass(frozen=True)
class Outcome:
    """What one run of `anomaly score` did with a folder.

    Attributes:
        exit_code: minus the number of the signal if one ended it.
        rows: of the table; there should be one a file.
        readable: rows with a score.
        reasons: how often each reason stands, cut at its colon.
        slowest: name of the file that took longest to read.
        slowest_s: how long.
        peak_mb: of resident memory.
        wall_s: of the whole run.
        stderr: all of it.
    """

    exit_code: int
    rows: int
    readable: int
    reasons: Counter[str]
    slowest: str
    slowest_s: float
    peak_mb: float
    wall_s: float
    stderr: str

    def failures(self, files: int) -> list[str]:
        """Say what should not have been, in a few words each."""
        found = {
            f"exit code {self.exit_code}": self.exit_code != 0,
            f"{self.rows} rows for {files} files": self.rows != files,
            f"{self.slowest_s:.1f} s for {self.slowest}": self.slowest_s >= SLOWEST_S,
            "something on stderr": bool(self.stderr),
        }
        return [what for what, holds in found.items() if holds]


def score(folder: Path, model: Path, scratch: Path) -> Outcome:
    """Score a folder in a process of its own.

    Args:
        folder: of images.
        model: file of `anomaly train`.
        scratch: folder for the table and the clock's notes.
    """
    table, times, messages = scratch / "scores.jsonl", scratch / "times.json", scratch / "stderr"
    for path in (table, times):
        path.unlink(missing_ok=True)
    command = [sys.executable, "-c", TIMED, "score", *map(str, (folder, "--model", model, "--out", table)), "--quiet"]
    started = time.monotonic()
    with messages.open("wb") as stderr:
        process = subprocess.Popen(command, stderr=stderr, env={**os.environ, "TIMES": str(times)})
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    wall_s = time.monotonic() - started
    records = [json.loads(line) for line in table.read_bytes().splitlines()] if table.exists() else []
    took = json.loads(times.read_text()) if times.exists() else {"no file": 0.0}
    slowest = max(took, key=lambda name: took[name])
    return Outcome(
        exit_code=process.returncode,
        rows=len(records),
        readable=sum(record["status"] == "ok" for record in records),
        reasons=Counter(record["reason"].partition(":")[0] for record in records if record["status"] != "ok"),
        slowest=slowest,
        slowest_s=took[slowest],
        peak_mb=usage.ru_maxrss / MEGABYTE,
        wall_s=wall_s,
        stderr=messages.read_text("utf-8", "replace"),
    )


def train_model(folder: Path) -> Path:
    """Train a model on made-up textures."""
    write_textures(folder / "normal", NORMALS, IMAGE_SIZE)
    model = folder / "model.safetensors"
    options = ["--image-size", str(IMAGE_SIZE), "--prototypes", "50", "--effort", "quick", "--quiet"]
    subprocess.run([*COMMAND, "train", folder / "normal", "--model", model, *options], check=True)
    return model


def _report(seed: int, files: int, outcome: Outcome) -> list[str]:
    failures = outcome.failures(files)
    reasons = ", ".join(f"{count} {reason}" for reason, count in outcome.reasons.most_common())
    print(
        f"seed {seed}: {files} files, {outcome.rows} rows, exit {outcome.exit_code}; "
        f"{outcome.readable} readable, {outcome.rows - outcome.readable} unreadable ({reasons})\n"
        f"  slowest file {outcome.slowest_s:.2f} s ({outcome.slowest}), peak {outcome.peak_mb:.0f} MB, "
        f"{outcome.wall_s:.0f} s in all: {'; '.join(failures) or 'as it should be'}",
        flush=True,
    )
    return failures


def main() -> None:
    """Run over each seed and print a paragraph of each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=2000, help="a seed, bombs included")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--keep", type=Path, help="folder for the files, which are removed otherwise")
    args = parser.parse_args()
    failed = False
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        model = train_model(scratch)
        for seed in args.seeds:
            folder = (args.keep or scratch) / f"seed {seed}"
            write_malformed(folder, args.files, seed)
            outcome = score(folder, model, scratch)
            if _report(seed, args.files, outcome):
                failed = True
                print(outcome.stderr[-3000:])
    sys.exit(failed)


if __name__ == "__main__":
    main()
