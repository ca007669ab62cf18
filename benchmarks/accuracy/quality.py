"""Measure ranking and localisation on labelled sets: `python -m benchmarks.accuracy.quality --data DIR/screw …`.

Every set and seed is trained and scored by the product's own pipeline, in a process of its own. The seed draws the
images and is the seed of the training.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from anomaly_cli.config import DetectorConfig, Effort
from anomaly_cli.errors import UnreadableImageError
from anomaly_cli.review.masks import read_mask, resize_map
from anomaly_cli.scoring import score as scoring
from anomaly_cli.scoring.measure import Scorer
from anomaly_cli.statistics.image_metrics import image_metrics
from anomaly_cli.statistics.pixel_metrics import Map, Mask, PixelCurves, PixelMetrics
from anomaly_cli.training import train as training
from benchmarks.accuracy.datasets import AnomalySet, TestImage, subsample
from benchmarks.jobs import Row, peak_mb, run_table, set_options


@dataclass(frozen=True)
class Job:
    """One training and scoring."""

    data: AnomalySet
    config: DetectorConfig
    weights: Path | None


def quiet(_phase: str, _done: int, _total: int) -> None:
    """Show no progress."""


def measure(job: Job) -> Row:
    """Train, score and compare with the labels."""
    with tempfile.TemporaryDirectory() as folder:
        model_path = Path(folder) / "model.safetensors"
        start = time.perf_counter()
        trained = training.train(job.data.normal, model_path, job.config, weights=job.weights, progress=quiet)
        between = time.perf_counter()
        report = scoring.score([image.path for image in job.data.test], model_path, progress=quiet)
        end = time.perf_counter()
    peak = peak_mb()
    anomalous = {str(image.path): image.anomalous for image in job.data.test}
    row: Row = {"set": job.data.name, "seed": job.config.seed}
    row |= {"normals": len(job.data.normal), "tested": len(job.data.test)}
    row |= _ranking(report, anomalous)
    row |= _localisation(trained, job.data.test)._asdict() if job.data.has_masks else {}
    row |= {"train_s": between - start, "score_s": end - between, "peak_mb": peak}
    return row


def _ranking(report: scoring.ScoreReport, anomalous: dict[str, bool]) -> Row:
    """Measure the order of the images, that of each scale alone, and what the limits flag."""
    labels = np.array([anomalous[row.path] for row in report.readable])
    scores = np.array([row.score for row in report.readable], float)
    flags = np.array([row.flagged for row in report.readable])
    scales = np.array([row.scales for row in report.readable])
    out: Row = {**image_metrics(labels, scores)._asdict()}
    for name, column in zip(report.scale_names, scales.T, strict=True):
        out[f"auroc_{name}"] = image_metrics(labels, column).image_auroc
    out["normal_above_limit"] = float((scores[~labels] >= 1).mean())
    out["normal_flagged"] = float(flags[~labels].mean())
    out["anomalous_flagged"] = float(flags[labels].mean())
    return out


def _localisation(trained: training.TrainReport, test: list[TestImage]) -> PixelMetrics:
    results = Scorer(trained.model, [torch.device("cpu")]).measure([image.path for image in known_truth(test)])
    readable = (each for each in results if not isinstance(each, UnreadableImageError))
    return localisation(known_truth(test), ((each.anomaly_map, each.height, each.width) for each in readable))


def known_truth(test: list[TestImage]) -> list[TestImage]:
    """Choose the images of which is known where they are anomalous: those with a mask, and the normal ones."""
    return [image for image in test if image.mask is not None or not image.anomalous]


def localisation(test: list[TestImage], found: Iterable[tuple[Map, int, int]]) -> PixelMetrics:
    """Measure anomaly maps at the size of the masks.

    Args:
        test: images whose truth is known.
        found: of each the map, and height and width of the file in pixels.
    """
    maps: list[Map] = []
    masks: list[Mask] = []
    for image, (anomaly_map, height, width) in zip(test, found, strict=True):
        masks.append(read_mask(image.mask, height, width))
        maps.append(resize_map(anomaly_map, *masks[-1].shape))
    return PixelCurves(zip(maps, masks, strict=True)).measure(np.ones(len(maps), np.int64))


def jobs_of(args: argparse.Namespace, sets: list[AnomalySet]) -> Iterator[Job]:
    """Make one job a set and seed."""
    for data in sets:
        for seed in range(args.seeds):
            config = DetectorConfig(
                backbone=args.backbone,
                image_size=args.image_size,
                prototypes=args.prototypes,
                effort=Effort(args.effort),
                seed=seed,
            )
            yield Job(subsample(data, args.max_train, args.max_test, seed), config, args.weights)


def measure_one(job: Job) -> list[Row]:
    """Measure a job of `run_table`."""
    return [measure(job)]


def mean_table(results: pd.DataFrame) -> pd.DataFrame:
    """Average over the seeds of each set, then over the sets."""
    means = results.drop(columns="seed").groupby("set", sort=False).mean()
    means.loc["mean"] = means.mean()
    return means


def parser() -> argparse.ArgumentParser:
    """Describe the options; the defaults of the tool are its own."""
    defaults = DetectorConfig()
    options = set_options(__doc__)
    options.add_argument("--backbone", default=defaults.backbone)
    options.add_argument("--weights", type=Path, help="file with the weights of a torchvision backbone")
    options.add_argument("--image-size", type=int, default=defaults.image_size)
    options.add_argument("--prototypes", type=int, default=defaults.prototypes)
    options.add_argument("--effort", choices=[effort.value for effort in Effort], default=defaults.effort.value)
    return options


def main() -> None:
    """Measure and print the means."""
    args = parser().parse_args()
    results = run_table(args, measure_one, jobs_of)
    with pd.option_context("display.width", 200, "display.max_columns", None):
        print(mean_table(results).T.round(3).to_string())


if __name__ == "__main__":
    main()
