"""Compare with other methods on the same files: `python -m benchmarks.accuracy.peers --data DIR/screw …`.

Every set, seed and method runs in a process of its own: learns from the same normal images, judges the same test
images, both resized to the same size, with the weights of the embedded backbone. Seconds and images/s are of learning
and judging whole files with all cores; the peak of memory is that of the process.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass

from anomaly_cli.config import DetectorConfig
from anomaly_cli.statistics.image_metrics import image_metrics
from benchmarks.accuracy.anomalib_methods import ANOMALIB_METHODS, available, load_library
from benchmarks.accuracy.datasets import AnomalySet, subsample
from benchmarks.accuracy.methods import METHODS, Settings
from benchmarks.accuracy.quality import known_truth, localisation
from benchmarks.jobs import Row, peak_mb, print_means, run_table, set_options

ALL_METHODS = METHODS | ANOMALIB_METHODS


@dataclass(frozen=True)
class Job:
    """One method on one draw of a set; the label is for other tables that measure the same way."""

    data: AnomalySet
    method: str
    settings: Settings
    label: str = ""


def measure(job: Job) -> list[Row]:
    """Learn, judge and compare with the labels: one row."""
    data = job.data
    if job.method in ANOMALIB_METHODS:
        load_library()
    start = time.perf_counter()
    judge = ALL_METHODS[job.method](data.normal, job.settings)
    between = time.perf_counter()
    judged = list(judge([image.path for image in data.test]))
    seconds = time.perf_counter() - between
    peak = peak_mb()
    row: Row = {"set": data.name, "seed": job.settings.seed, "method": job.method}
    row |= {"normals": len(data.normal), "tested": len(data.test)}
    row |= image_metrics([image.anomalous for image in data.test], [each.score for each in judged])._asdict()
    if data.has_masks and judged[0].anomaly_map is not None:
        known = known_truth(data.test)
        by_path = {image.path: each for image, each in zip(data.test, judged, strict=True)}
        said = [by_path[image.path] for image in known]
        maps = [(j.anomaly_map, j.height, j.width) for j in said if j.anomaly_map is not None]
        row |= localisation(known, maps)._asdict()
    return [row | {"train_s": between - start, "images_per_s": len(judged) / seconds, "peak_mb": peak}]


def jobs_of(args: argparse.Namespace, sets: list[AnomalySet]) -> Iterator[Job]:
    """Make one job a set, seed and method; methods of one seed see the same images."""
    for data in sets:
        for seed in range(args.seeds):
            drawn = subsample(data, args.max_train, args.max_test, seed)
            for method in args.methods:
                yield Job(drawn, method, Settings(args.image_size, seed, args.coreset_ratio))


def installed_methods() -> list[str]:
    """Name the methods whose libraries are installed."""
    return [*METHODS, *(ANOMALIB_METHODS if available() else [])]


def main() -> None:
    """Measure and print the means."""
    options = set_options(__doc__)
    options.add_argument("--methods", nargs="+", choices=ALL_METHODS, help="default: all that are installed")
    options.add_argument("--image-size", type=int, default=DetectorConfig().image_size)
    options.add_argument(
        "--coreset-ratio", type=float, default=Settings().coreset_ratio, help="share of cells that PatchCore keeps"
    )
    args = options.parse_args()
    if args.methods is None:
        args.methods = installed_methods()
        if not available():
            print("anomalib is not installed (pip install -e '.[bench]'): its methods are left out")
    results = run_table(args, measure, jobs_of)
    print_means(results, ["method"])


if __name__ == "__main__":
    main()
