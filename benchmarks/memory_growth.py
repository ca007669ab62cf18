"""Measure whether memory grows with the number of files: `python -m benchmarks.memory_growth`.

Each run of `anomaly score` is a process of its own. This module imports no torch: a child's peak counts the pages
that it shares with its parent before it becomes another program.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.textures import write_textures

NORMALS = 20
COMMAND = [sys.executable, "-c", "from anomaly_cli.cli import app; app()"]
MEGABYTE = 1024  # of getrusage, which counts in kB


def peak_mb(*arguments: str | Path) -> float:
    """Run `anomaly` and return the peak of its resident memory in MB.

    Raises:
        RuntimeError: the command failed.
    """
    process = subprocess.Popen([*COMMAND, *arguments], stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise RuntimeError(f"anomaly {arguments[0]} ended with {process.returncode}")
    return usage.ru_maxrss / MEGABYTE


def main() -> None:
    """Measure and print both peaks and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", type=int, nargs=2, default=[500, 5000], help="files to score, few and many")
    parser.add_argument("--side", type=int, default=256, help="pixels, of the files")
    parser.add_argument("--image-size", type=int, default=256, help="of `anomaly train`")
    args = parser.parse_args()
    peaks = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = folder / "model.safetensors"
        write_textures(folder / "normal", NORMALS, args.side)
        peak_mb("train", folder / "normal", "--model", model, "--image-size", str(args.image_size))
        for count in args.counts:
            write_textures(folder / str(count), count, args.side, seed=1)
            out = folder / f"{count}.csv"
            peaks.append(peak_mb("score", folder / str(count), "--model", model, "--out", out))
            print(f"{count:6d} files: peak {peaks[-1]:7.0f} MB", flush=True)
    print(f"ratio {peaks[1] / peaks[0]:.3f}")


if __name__ == "__main__":
    main()
