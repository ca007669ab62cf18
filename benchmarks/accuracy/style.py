"""Detect changes of appearance: `python -m benchmarks.accuracy.style --data DIR/screw … sample_data`.

Normal images are dealt into some to learn from and some held out. The held-out ones, untouched, are the normal test
images; each changed by one of `appearance` is an anomaly. All are brought to network size first and kept without
loss, so that nothing but the appearance differs. One training serves all changes.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from anomaly_cli.config import DetectorConfig
from anomaly_cli.statistics.image_metrics import image_metrics
from benchmarks.accuracy.appearance import CHANGES
from benchmarks.accuracy.calibration import small_copies
from benchmarks.accuracy.datasets import AnomalySet
from benchmarks.accuracy.methods import METHODS, Method, Settings, ours_averaged
from benchmarks.jobs import Row, peak_mb, print_means, run_table, set_options

STYLE_METHODS: dict[str, Method] = METHODS | {"ours_averaged": ours_averaged}
MIN_SHARE_HELD_OUT = 0.25  # of the normal images of a small set


@dataclass(frozen=True)
class Job:
    """One method on one draw of the normal images of a set."""

    name: str
    normal: list[Path]
    held_out: list[Path]
    method: str
    settings: Settings


def deal(data: AnomalySet, max_train: int, max_test: int, seed: int) -> tuple[list[Path], list[Path]]:
    """Draw disjoint normal images to learn from and to hold out, of all that the set has."""
    normal = data.normal + [image.path for image in data.test if not image.anomalous]
    order = np.random.default_rng([seed, 4]).permutation(len(normal))
    held_out = min(max_test, max(len(normal) - max_train, round(MIN_SHARE_HELD_OUT * len(normal))))
    chosen = [normal[i] for i in order]
    return sorted(chosen[held_out:][:max_train]), sorted(chosen[:held_out])


def change(path: Path, appearance: str, folder: Path, seed: int) -> Path:
    """Write a changed picture below a folder of that change; same seed and file name, same picture."""
    target = folder / appearance / path.name
    target.parent.mkdir(parents=True, exist_ok=True)
    with Image.open(path) as image:
        rng = np.random.default_rng([seed, [*CHANGES].index(appearance), *path.name.encode()])
        changed = CHANGES[appearance](np.asarray(image.convert("RGB")), rng)
    Image.fromarray(changed).save(target, compress_level=1)
    return target


def measure(job: Job) -> list[Row]:
    """Train once, score unchanged images once, then each change: one row per change."""
    size, seed = job.settings.image_size, job.settings.seed
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        normal = small_copies(job.normal, folder / "normal", size)
        held_out = small_copies(job.held_out, folder / "held out", size)
        start = time.perf_counter()
        judge = STYLE_METHODS[job.method](normal, job.settings)
        train_s = time.perf_counter() - start
        untouched = [each.score for each in judge(held_out)]
        rows: list[Row] = []
        for appearance in CHANGES:
            changed = [change(path, appearance, folder, seed) for path in held_out]
            scores = [each.score for each in judge(changed)]
            labels = [False] * len(untouched) + [True] * len(scores)
            row: Row = {
                "set": job.name,
                "seed": seed,
                "method": job.method,
                "appearance": appearance,
                "normals": len(normal),
            }
            row |= {"tested": len(labels)} | image_metrics(labels, untouched + scores)._asdict()
            rows.append(row | {"train_s": train_s, "peak_mb": peak_mb()})
    return rows


def jobs_of(args: argparse.Namespace, sets: list[AnomalySet]) -> Iterator[Job]:
    """Make one job a set, seed and method."""
    for data in sets:
        for seed in range(args.seeds):
            normal, held_out = deal(data, args.max_train, args.max_test, seed)
            for method in args.methods:
                yield Job(data.name, normal, held_out, method, Settings(args.image_size, seed))


def main() -> None:
    """Measure and print the means."""
    options = set_options(__doc__)
    options.add_argument("--methods", nargs="+", choices=STYLE_METHODS, default=["ours", "ours_averaged", "prototypes"])
    options.add_argument("--image-size", type=int, default=DetectorConfig().image_size)
    args = options.parse_args()
    results = run_table(args, measure, jobs_of)
    print_means(results, ["appearance", "method"])


if __name__ == "__main__":
    main()
