"""Learn from few normal images: `python -m benchmarks.accuracy.few_normals --data DIR/screw … --out FILE.csv`.

Fewer images of one seed are some of the more, and all counts are tested on the same images. 0 is as many as
`--max-train` lets be.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from anomaly_cli.config import DetectorConfig
from benchmarks.accuracy.datasets import AnomalySet, subsample
from benchmarks.accuracy.methods import METHODS, Settings
from benchmarks.accuracy.peers import Job, measure
from benchmarks.jobs import Row, print_means, run_table, set_options

COUNTS = (8, 16, 32, 64, 0)
ALL = "all"  # how the table names the count 0


def measure_one(job: Job) -> list[Row]:
    """Measure as `benchmarks.accuracy.peers` does, and name the count."""
    return [row | {"count": job.label} for row in measure(job)]


def jobs_of(args: argparse.Namespace, sets: list[AnomalySet]) -> Iterator[Job]:
    """Make one job a set, seed, count and method; counts beyond what the set has are left out."""
    for data in sets:
        for seed in range(args.seeds):
            full = subsample(data, args.max_train, args.max_test, seed)
            order = np.random.default_rng([seed, 5]).permutation(len(full.normal))
            for count in args.counts:
                if count >= len(full.normal):
                    continue
                chosen = sorted(full.normal[i] for i in order[: count or None])
                for method in args.methods:
                    label = str(count) if count else ALL
                    yield Job(replace(full, normal=chosen), method, Settings(args.image_size, seed), label)


def main() -> None:
    """Measure and print the means."""
    options = set_options(__doc__)
    options.add_argument("--counts", type=int, nargs="+", default=COUNTS, help="normal images to learn from; 0 is all")
    options.add_argument("--methods", nargs="+", choices=METHODS, default=["ours", "prototypes"])
    options.add_argument("--image-size", type=int, default=DetectorConfig().image_size)
    args = options.parse_args()
    results = run_table(args, measure_one, jobs_of)
    print_means(results, ["count", "method"])


if __name__ == "__main__":
    main()
