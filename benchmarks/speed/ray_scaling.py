"""Measure how `score --engine ray` scales: `python -m benchmarks.speed.ray_scaling [--files DIR] [--workers 1 2]`.

Each round runs every number of workers once, alternating, each in a local cluster of so many cores. Prints the seconds
until the first row (cluster, workers and model are ready), images/s from there to the last row, both as medians over
the rounds, and the bytes of memory per row where all rows are gathered and ranked.
"""

from __future__ import annotations

import argparse
import logging
import os
import pickle
import statistics
import tempfile
import time
import tracemalloc
from pathlib import Path

from anomaly_cli.config import DetectorConfig, Engine
from anomaly_cli.scoring import ray_cluster
from anomaly_cli.scoring import score as scoring
from anomaly_cli.tables.row import Row
from anomaly_cli.training import train as training
from benchmarks.accuracy.quality import quiet
from benchmarks.accuracy.textures import add_image_options, images_of

STORE_BYTES = 2**28


def measure(paths: list[Path], model: Path, workers: int) -> tuple[float, float, list[Row]]:
    """Score in a local cluster; return the seconds to the first row, images/s from there on, and the rows."""
    import ray

    times: list[float] = []
    start = time.perf_counter()
    ray.init(
        "local",
        num_cpus=workers,
        object_store_memory=STORE_BYTES,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.CRITICAL,
    )
    try:
        report = scoring.score(
            paths,
            model,
            engine=Engine.RAY,
            device="cpu",
            progress=lambda _phase, _done, _total: times.append(time.perf_counter()),
        )
    finally:
        ray.shutdown()
    # The rows of a batch come together: those of the first are no work of the time that counts.
    first = ray_cluster.batch_size(len(paths), workers)
    return times[0] - start, (len(paths) - first) / (times[-1] - times[0]), report.rows


def row_bytes(rows: list[Row]) -> float:
    """Return the memory that one row takes as the driver holds it."""
    packed = [pickle.dumps(row) for row in rows]
    tracemalloc.start()
    kept = [pickle.loads(row) for row in packed]
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return size / len(kept)


def report(paths: list[Path], model: Path, counts: list[int], rounds: int) -> None:
    """Measure and print one line per number of workers."""
    results = [{count: measure(paths, model, count) for count in counts} for _ in range(rounds)]
    base = 0.0
    for count in counts:
        first_s = statistics.median(each[count][0] for each in results)
        rate = statistics.median(each[count][1] for each in results)
        base = base or rate / count
        print(
            f"{count} workers: first row after {first_s:6.1f} s, then {rate:7.1f} images/s, "
            f"{rate / count / base:4.2f} of linear"
        )
    print(f"{row_bytes(results[0][counts[0]][2]):.0f} bytes per row in the driver")


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_image_options(parser, incoming=2000)
    parser.add_argument("--image-size", type=int, default=DetectorConfig.image_size)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    os.environ.update(ray_cluster.SILENCE)
    with tempfile.TemporaryDirectory() as folder:
        paths = images_of(parser, args, Path(folder))
        model = Path(folder) / "model.safetensors"
        config = DetectorConfig(image_size=args.image_size)
        training.train(paths[: args.normal], model, config, device="cpu", progress=quiet)
        report(paths[args.normal :], model, args.workers, args.rounds)


if __name__ == "__main__":
    main()
