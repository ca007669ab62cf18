"""Measure speed: `python -m benchmarks.speed.speed [--files DIR]`.

Prints images/s of decoding and resizing alone and of whole scoring, with the same worker threads, alternating; the time
of whole scoring with the quality columns relative to scoring without (`--no-quality`), and in float32 relative to the
precision that this processor prefers, with the change of the scores; seconds of training on 100 and scoring 200 images;
and seconds of `anomaly --help`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr

from anomaly_cli.config import DetectorConfig
from anomaly_cli.detector.checkpoint import Model
from anomaly_cli.detector.devices import FLOAT32_VARIABLE
from anomaly_cli.images.decode import load_image
from anomaly_cli.scoring import score as scoring
from anomaly_cli.scoring.measure import Scorer
from anomaly_cli.scoring.parallel import parallel_map, worker_count
from anomaly_cli.training import train as training
from benchmarks.accuracy.quality import quiet
from benchmarks.accuracy.textures import add_image_options, images_of
from benchmarks.speed.memory_growth import COMMAND

ROUNDS = 5  # what is compared alternates, so that a busy machine slows both


def seconds(work: Callable[[], object]) -> float:
    """Time one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def compare_rates(model: Model, paths: list[Path]) -> tuple[float, float]:
    """Return images/s of reading alone and of whole scoring: medians over alternating rounds."""
    size, scorer = model.config.image_size, Scorer(model, [torch.device("cpu")])

    def read() -> None:
        for _ in parallel_map(lambda path: load_image(path, size), paths, worker_count()):
            pass

    def score() -> None:
        for _ in scorer.measure(paths):
            pass

    rounds = [(seconds(read), seconds(score)) for _ in range(ROUNDS)]
    reading, whole = (statistics.median(each) for each in zip(*rounds, strict=True))
    return len(paths) / reading, len(paths) / whole


def quality_costs(model_path: Path, paths: list[Path]) -> list[float]:
    """Return the time of `score` with the quality columns in times of `score` without, in ascending order, a round."""

    def score(with_quality: bool) -> float:
        return seconds(lambda: scoring.score(paths, model_path, progress=quiet, with_quality=with_quality))

    score(True)  # the first run loads libraries
    ratios = []
    for number in range(ROUNDS):
        took = {with_quality: score(with_quality) for with_quality in (number % 2 == 0, number % 2 == 1)}
        ratios.append(took[True] / took[False])
    return sorted(ratios)


def precision(model_path: Path, paths: list[Path]) -> tuple[float, float, float]:
    """Compare scoring as this processor does it with scoring in float32.

    Returns:
        Time of float32 in times of the other, median over alternating rounds; Spearman's correlation of the scores; the
        largest difference of a score, as a share of it.
    """
    scores: dict[str, NDArray[np.float64]] = {}

    def score(setting: str) -> float:
        with mock.patch.dict(os.environ, {FLOAT32_VARIABLE: setting}):
            start = time.perf_counter()
            rows = scoring.score(paths, model_path, progress=quiet, with_quality=False).rows
            took = time.perf_counter() - start
        scores[setting] = np.array([row.score for row in sorted(rows, key=lambda row: row.path)], float)
        return took

    ratio = statistics.median(score("1") / score("") for _ in range(ROUNDS))
    exact, fast = scores["1"], scores[""]
    return ratio, float(spearmanr(exact, fast).statistic), float((np.abs(fast - exact) / exact).max())


def report(paths: list[Path], normals: int, config: DetectorConfig) -> None:
    """Measure everything on images of which the first `normals` are the training set."""
    normal, incoming = paths[:normals], paths[normals:]
    with tempfile.TemporaryDirectory() as folder:
        model_path = Path(folder) / "model.safetensors"
        trained: list[training.TrainReport] = []
        train_s = seconds(lambda: trained.append(training.train(normal, model_path, config, progress=quiet)))
        score_s = seconds(lambda: scoring.score(incoming, model_path, progress=quiet))
        costs = quality_costs(model_path, incoming)
        float32, spearman, difference = precision(model_path, incoming)
    reading, whole = compare_rates(trained[0].model, incoming)
    help_s = min(
        seconds(lambda: subprocess.run([*COMMAND, "--help"], check=True, capture_output=True)) for _ in "12345"
    )
    print(f"{worker_count()} workers, {config.image_size} px, backbone {config.backbone}, effort {config.effort}")
    print(f"decode and resize  {reading:8.1f} images/s")
    print(f"whole scoring      {whole:8.1f} images/s   {reading / whole:.2f} times slower")
    print(
        f"quality columns    {statistics.median(costs):8.3f} times the time without, {costs[0]:.3f} to {costs[-1]:.3f}"
    )
    print(
        f"float32            {float32:8.2f} times the time; "
        f"Spearman {spearman:.4f}, scores differ by {difference:.2%} at most"
    )
    print(f"train on {len(normal)} images {train_s:8.1f} s")
    print(f"score {len(incoming)} images    {score_s:8.1f} s   together {train_s + score_s:.1f} s")
    print(f"anomaly --help     {help_s:8.2f} s   fastest of 5")


def main() -> None:
    """Parse the command line and measure."""
    defaults = DetectorConfig()
    parser = argparse.ArgumentParser(description=__doc__)
    add_image_options(parser, incoming=200)
    parser.add_argument("--backbone", default=defaults.backbone)
    parser.add_argument("--image-size", type=int, default=defaults.image_size)
    args = parser.parse_args()
    config = DetectorConfig(backbone=args.backbone, image_size=args.image_size)
    with tempfile.TemporaryDirectory() as folder:
        paths = images_of(parser, args, Path(folder))
        report(paths, args.normal, config)


if __name__ == "__main__":
    main()
