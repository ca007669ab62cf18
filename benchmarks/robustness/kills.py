"""Kill `anomaly score --resume` again and again at any moment: `python -m benchmarks.robustness.kills --kills 30`.

Each run is a process of its own and gets SIGKILL after a random time, unless it has finished before. Afterwards the
table is compared with that of an uninterrupted run; exits with 1 where a byte differs or anything is left behind.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.accuracy.textures import write_textures
from benchmarks.robustness.malformed import COMMAND, train_model
from benchmarks.robustness.malformed_files import write_malformed


def kill_and_resume(arguments: list[str], table: Path, kills: int, longest_s: float, seed: int) -> tuple[int, int]:
    """Start a command until so many of its runs were killed and one finished.

    Args:
        arguments: of `anomaly`.
        table: what it writes; removed whenever a run finished before it was killed.
        kills: how many runs to kill.
        longest_s: a run is killed after a random time up to this.
        seed: of the times.

    Returns:
        How many runs were killed, and how many finished before they could be.

    Raises:
        RuntimeError: a run ended by itself with an error.
    """
    rng = random.Random(seed)
    killed = finished = 0
    while True:
        process = subprocess.Popen([*COMMAND, *arguments], stderr=subprocess.PIPE)
        wait_s = rng.uniform(0, longest_s) if killed < kills else None
        try:
            _, stderr = process.communicate(timeout=wait_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            killed += 1
            continue
        if process.returncode:
            raise RuntimeError(f"exit code {process.returncode}: {stderr.decode()}")
        if killed >= kills:
            return killed, finished
        finished += 1
        table.unlink()


def main() -> None:
    """Score once without kills, then once with kills, and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--files", type=int, default=600, help="sound and malformed ones, half of each")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = train_model(folder)
        files, out = folder / "files", folder / "out"
        out.mkdir()
        write_textures(files, args.files // 2, 128, args.seed)
        write_malformed(files, args.files // 2, args.seed, bombs=False)
        whole, table = out / "whole.csv", out / "resumed.csv"
        arguments = ["score", str(files), "--model", str(model), "--quiet", "--out"]
        started = time.monotonic()
        subprocess.run([*COMMAND, *arguments, str(whole)], check=True)
        once_s = time.monotonic() - started
        killed, finished = kill_and_resume([*arguments, str(table), "--resume"], table, args.kills, once_s, args.seed)
        same = whole.read_bytes() == table.read_bytes()
        left = sorted(path.name for path in out.iterdir() if path not in (whole, table))
    print(
        f"{args.files} files, {once_s:.1f} s without a kill; {killed} runs killed, {finished} finished before that; "
        f"table {'byte-identical' if same else 'DIFFERENT'}, left behind: {', '.join(left) or 'nothing'}"
    )
    sys.exit(not same or bool(left))


if __name__ == "__main__":
    main()
