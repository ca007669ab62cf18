"""The cost of anomalies among the normal images, and whether they are found (`benchmarks.accuracy.contamination`).

Three questions a set, rate and seed, on the same images:
training: image AUROC on test images after training with anomalies hidden among the normal images, against none;
outliers: share of the hidden ones among the worst tenth of `--audit-normals`;
audit: average precision of `anomaly audit` on a mixed folder, against scoring it with a model of other, clean images.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from sklearn.metrics import average_precision_score

from anomaly_cli.config import DetectorConfig
from anomaly_cli.scoring import score as scoring
from anomaly_cli.statistics.image_metrics import image_metrics
from anomaly_cli.tables.reader import read_paths
from anomaly_cli.tables.row import Row
from anomaly_cli.training import audit as audit_
from anomaly_cli.training import train as training_
from benchmarks.accuracy.datasets import AnomalySet, subsample
from benchmarks.accuracy.quality import quiet
from benchmarks.jobs import Row as Figures
from benchmarks.jobs import peak_mb, print_means, run_table, set_options

RATES = (0.0, 0.01, 0.05, 0.1, 0.2)
HIDDEN_SHARE = 0.5  # at most so many of the anomalies are ever hidden
WORST_SHARE = 0.1  # of the audited normal images


@dataclass(frozen=True)
class Job:
    """One share of hidden anomalies on one draw of a set."""

    data: AnomalySet
    rate: float
    config: DetectorConfig
    with_audit: bool


def hide(data: AnomalySet, rate: float, seed: int) -> tuple[list[Path], AnomalySet]:
    """Choose anomalies that make up `rate` of the normal images once they are among them, or all that may be hidden.

    Every rate is tested on the same images: the normal ones and the anomalies that no rate hides.
    """
    anomalies = [image.path for image in data.test if image.anomalous]
    random.Random(seed).shuffle(anomalies)
    pool = anomalies[: int(HIDDEN_SHARE * len(anomalies))]
    hidden = pool[: round(len(data.normal) * rate / (1 - rate))]
    return sorted(hidden), replace(data, test=[image for image in data.test if image.path not in pool])


def auroc_of(rows: list[Row], anomalous: set[str]) -> float:
    """Image AUROC of a ranking."""
    readable = [row for row in rows if row.score is not None]
    return image_metrics(
        [row.path in anomalous for row in readable], [row.score or 0.0 for row in readable]
    ).image_auroc


def training(data: AnomalySet, hidden: list[Path], folder: Path, config: DetectorConfig) -> dict[str, float]:
    """Train with hidden anomalies; test, and look for them."""
    model, audited = folder / "model.safetensors", folder / "normals.csv"
    normal = [*data.normal, *hidden]
    start = time.perf_counter()
    report = training_.train(normal, model, config, audit_normals=audited, progress=quiet)
    train_s = time.perf_counter() - start
    scored = scoring.score([image.path for image in data.test], model, progress=quiet)
    figures = {"image_auroc": auroc_of(scored.rows, {str(image.path) for image in data.test if image.anomalous})}
    if hidden:
        worst = {Path(path) for path, _, _ in read_paths(audited)[: max(1, round(WORST_SHARE * len(normal)))]}
        figures["found_in_worst_tenth"] = float(np.mean([path in worst for path in hidden]))
    hits = sum(path in set(hidden) for path in report.outliers)
    figures |= {"suspects": len(report.outliers), "suspects_hidden": hits, "hidden": len(hidden)}
    return figures | {"train_s": train_s}


def audit(data: AnomalySet, rate: float, folder: Path, config: DetectorConfig) -> dict[str, float]:
    """Audit one half of the normal images with anomalies mixed in; score the same with a model of the other half."""
    other = replace(data, normal=data.normal[::2])
    hidden, _ = hide(other, rate, config.seed)
    mixed, anomalous = [*other.normal, *hidden], {str(path) for path in hidden}
    model = folder / "reference.safetensors"
    training_.train(data.normal[1::2], model, config, progress=quiet)

    def precision(rows: list[Row]) -> float:
        return float(average_precision_score([row.path in anomalous for row in rows], [row.score for row in rows]))

    audited = audit_.audit(mixed, config, progress=quiet)
    reference = scoring.score(mixed, model, progress=quiet)
    return {"ap_audit": precision(audited.rows), "ap_clean_model": precision(reference.rows)}


def measure(job: Job) -> list[Figures]:
    """Answer all questions for one set, rate and seed."""
    hidden, rest = hide(job.data, job.rate, job.config.seed)
    with tempfile.TemporaryDirectory() as folder:
        figures = training(rest, hidden, Path(folder), job.config)
        if hidden and job.with_audit:
            figures |= audit(job.data, job.rate, Path(folder), job.config)
    return [{"set": job.data.name, "seed": job.config.seed, "rate": job.rate, **figures, "peak_mb": peak_mb()}]


def jobs_of(args: argparse.Namespace, sets: list[AnomalySet]) -> Iterator[Job]:
    """Make one job a set, seed and rate."""
    for data in sets:
        for seed in range(args.seeds):
            drawn = subsample(data, args.max_train, args.max_test, seed)
            for rate in args.rates:
                yield Job(drawn, rate, DetectorConfig(seed=seed), not args.no_audit)


def main() -> None:
    """Measure and print the means over the seeds."""
    options = set_options(__doc__)
    options.add_argument("--rates", type=float, nargs="+", default=RATES)
    options.add_argument("--no-audit", action="store_true", help="leave out `anomaly audit`, which takes half the time")
    args = options.parse_args()
    results = run_table(args, measure, jobs_of)
    for figure in results.columns.drop(["set", "seed", "rate", "train_s", "peak_mb"]):
        print_means(results, ["rate"], figure)


if __name__ == "__main__":
    main()
