"""Compare training on one process and on several: `python -m benchmarks.speed.processes`.

Wall time is what a user waits, CPU time the sum over all processes, imports included: on a shared machine only the
second can be compared.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from anomaly_cli.scoring import score as scoring
from anomaly_cli.statistics.image_metrics import image_metrics

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
SIDE = 64  # pixels
NORMALS, LABELLED = 60, 60  # images of each kind
VISIBLE = (0.1, 0.7)  # opacity of the anomalies


class Cost(NamedTuple):
    """Seconds that a command took: of the clock, and of all its processes together."""

    wall_s: float
    cpu_s: float


def train(processes: int, *arguments: str) -> Cost:
    """Run `anomaly train` on so many processes.

    Raises:
        RuntimeError: the command failed.
    """
    launcher = [sys.executable] if processes == 1 else [*TORCHRUN, str(processes)]
    started = time.monotonic()
    process = subprocess.Popen([*launcher, "-m", "anomaly_cli.cli", "train", *arguments], stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise RuntimeError(f"anomaly train on {processes} processes ended with {process.returncode}")
    return Cost(time.monotonic() - started, usage.ru_utime + usage.ru_stime)


def write_set(folder: Path, seed: int) -> None:
    """Write `normal`, `good` and `bad`: woven stripes, those of `bad` turned somewhere, more or less visibly."""
    draw = np.random.default_rng(seed)
    for name, count in (("normal", NORMALS), ("good", LABELLED), ("bad", LABELLED)):
        (folder / name).mkdir()
        for i in range(count):
            Image.fromarray(_stripes(draw, turned=name == "bad")).save(folder / name / f"{i:03}.png")


def _stripes(draw: np.random.Generator, *, turned: bool) -> NDArray[np.uint8]:
    """Draw (SIDE, SIDE, 3) stripes with noise, a quarter of the side of them turned."""
    y, x = np.mgrid[:SIDE, :SIDE]
    waves = np.sin((y + 0.3 * x) * draw.uniform(0.6, 0.9) + draw.uniform(0, 6))
    if turned:
        top, left = draw.integers(0, SIDE * 3 // 4, 2)
        patch = np.s_[top : top + SIDE // 4, left : left + SIDE // 4]
        waves[patch] += draw.uniform(*VISIBLE) * (waves.T[patch] - waves[patch])
    pixels = 128 + 40 * waves[..., None] + draw.normal(0, 12, (SIDE, SIDE, 3))
    rounded: NDArray[np.uint8] = pixels.clip(0, 255).astype(np.uint8)
    return rounded


def image_auroc(model: Path, folder: Path) -> float:
    """Score the labelled images of a set with a model."""
    report = scoring.score([folder / "good", folder / "bad"], model, progress=lambda *_: None)
    anomalous = [Path(row.path).parent.name == "bad" for row in report.readable]
    return image_metrics(anomalous, [row.score or 0.0 for row in report.readable]).image_auroc


def main() -> None:
    """Train, score and print one line per run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--effort", default="quick")
    chosen = parser.parse_args()
    print("processes  seed  image AUROC  wall s  CPU s", flush=True)
    for seed in chosen.seeds:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_set(folder, seed)
            for count in chosen.processes:
                model = folder / "anomaly.safetensors"
                options = ["--backbone", "scratch", "--effort", chosen.effort, "--seed", str(seed), "-m", str(model)]
                cost = train(count, str(folder / "normal"), *options)
                auroc = image_auroc(model, folder)
                print(f"{count:9}  {seed:4}  {auroc:11.3f}  {cost.wall_s:6.0f}  {cost.cpu_s:5.0f}", flush=True)


if __name__ == "__main__":
    main()
