"""Prove the statistics on real sets: `python -m benchmarks.accuracy.calibration --data DIR/screw … --splits 200`.

Every split draws fresh normal images and anomalies, every fifth the normal images to train on anew, and goes through
the product's own pipeline. Measured are false alarms, realised false discovery rate, the estimated share of anomalies,
and drift on batches with and without a shift. A stopped run is resumed: splits in the CSV are not
repeated.
"""

from __future__ import annotations

import argparse
import io
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from anomaly_cli.config import DetectorConfig
from anomaly_cli.detector.calibration import Calibration
from anomaly_cli.images.decode import load_image
from anomaly_cli.scoring import score as scoring
from anomaly_cli.statistics.drift import drift
from anomaly_cli.statistics.fdr import q_values
from anomaly_cli.statistics.prevalence import anomaly_share
from anomaly_cli.tables.row import Row
from anomaly_cli.training import train as training
from benchmarks.accuracy.datasets import read_mvtec
from benchmarks.accuracy.quality import quiet

Figures = dict[str, str | int | float]
Floats = NDArray[np.float64]
NOMINAL = (0.01, 0.05, 0.1, 0.2)
SHARES = (0.0, 0.01, 0.05, 0.1, 0.2)  # of anomalies planted in a batch
MIXED = 0.2  # share in the batch that the false discovery rate is measured on: fewer could not be flagged at 0.05
GRID = np.arange(1, 20) / 20  # p-values at which their distribution is measured
SHIFTED = 40  # images of a shifted batch
BATCHES = 5  # splits that share a training: each draws its own fresh images and anomalies


def _jpeg(image: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=20)
    return Image.open(buffer).convert("RGB")


SHIFTS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "darker": lambda image: image.point(lambda value: round(0.8 * value)),
    "blurred": lambda image: image.filter(ImageFilter.GaussianBlur(0.8)),
    "jpeg": _jpeg,
}


def small_copies(paths: list[Path], folder: Path, image_size: int) -> list[Path]:
    """Decode and resize each image once, as the product does, and keep it without loss for all splits."""
    folder.mkdir(parents=True)
    copies = [folder / f"{i:05}.png" for i in range(len(paths))]
    for path, copy in zip(paths, copies, strict=True):
        Image.fromarray(load_image(path, image_size).pixels).save(copy, compress_level=1)
    return copies


class SmallSet:
    """All normal and anomalous images of a set, small; `folder` also takes what a split needs."""

    def __init__(self, source: Path, folder: Path, image_size: int) -> None:
        """Read a set in MVTec layout."""
        data = read_mvtec(source)
        normal = data.normal + [image.path for image in data.test if not image.anomalous]
        self.name = data.name
        self.folder = folder / data.name
        self.normal = small_copies(normal, self.folder / "normal", image_size)
        self.anomalous = small_copies(
            [image.path for image in data.test if image.anomalous], self.folder / "anomalous", image_size
        )

    def shifted(self, kind: str, paths: list[Path]) -> list[Path]:
        """Change images as another camera or another export would."""
        folder = self.folder / kind
        folder.mkdir(exist_ok=True)
        for path in paths:
            with Image.open(path) as image:
                SHIFTS[kind](image.convert("RGB")).save(folder / path.name, compress_level=1)
        return [folder / path.name for path in paths]


@dataclass(frozen=True)
class Trained:
    """One training: its calibration, and rows of all images that it did not see."""

    calibration: Calibration
    model: Path
    fresh: list[Row]
    anomalous: list[Row]


def train_once(data: SmallSet, draw: int, normals: int, config: DetectorConfig) -> Trained:
    """Draw normal images, train on them, and score all others and all anomalies."""
    order = np.random.default_rng([draw, 0]).permutation(len(data.normal))
    drawn = [data.normal[i] for i in order]
    model = data.folder / "model.safetensors"
    calibration = training.train(drawn[:normals], model, config, progress=quiet).model.calibration
    return Trained(calibration, model, score_rows(drawn[normals:], model), score_rows(data.anomalous, model))


def score_rows(paths: list[Path], model: Path) -> list[Row]:
    """Score images, in the order given."""
    by_path = {row.path: row for row in scoring.score(paths, model, progress=quiet).rows}
    return [by_path[str(path)] for path in paths]


def split_figures(data: SmallSet, trained: Trained, split: int, fresh: int) -> Figures:
    """Draw the batch of one split from what its training has not seen; shifts are measured once a training."""
    rng = np.random.default_rng([split, 1])
    batch = [trained.fresh[i] for i in rng.permutation(len(trained.fresh))[:fresh]]
    anomalies = [trained.anomalous[i] for i in rng.permutation(len(trained.anomalous))]
    figures: Figures = {"set": data.name, "split": split, "normals": len(trained.calibration.normal_scores)}
    figures["fresh"] = len(batch)
    p_values = np.array([row.p_value for row in batch], float)
    figures |= {f"p_below_{level:.2f}": float((p_values <= level + 1e-9).mean()) for level in sorted({*GRID, 0.01})}
    figures |= _mixed(batch, anomalies, trained.calibration)
    if split % BATCHES == 0:
        paths = [Path(row.path) for row in batch[:SHIFTED]]
        for kind in SHIFTS:
            rows = score_rows(data.shifted(kind, paths), trained.model)
            figures[f"drift_{kind}"] = _drift_p(rows, trained.calibration)
    return figures


def _mixed(batch: list[Row], anomalies: list[Row], calibration: Calibration) -> Figures:
    """Plant anomalies in a batch of normal images, so many for each share."""
    figures: Figures = {}
    for share in SHARES:
        mixed = batch + anomalies[: round(len(batch) * share / (1 - share))]
        planted = 1 - len(batch) / len(mixed)
        estimated = anomaly_share(calibration.normal_scores, [row.score or 0.0 for row in mixed])
        if estimated is not None:
            figures[f"share_error_{share:.2f}"] = estimated.value - planted
            figures[f"share_covered_{share:.2f}"] = float(estimated.low <= planted <= estimated.high)
            figures[f"share_width_{share:.2f}"] = estimated.high - estimated.low
        figures[f"drift_{share:.2f}"] = _drift_p(mixed, calibration)
        if share == MIXED:
            q = q_values(np.array([row.p_value for row in mixed], float))
            for level in NOMINAL:
                flagged = q <= level
                figures[f"fdr_{level:.2f}"] = flagged[: len(batch)].sum() / max(1, flagged.sum())
                figures[f"found_{level:.2f}"] = float(flagged[len(batch) :].mean())
    return figures


def _drift_p(rows: list[Row], calibration: Calibration) -> float:
    normal = calibration.scores(calibration.normal_deviations)[1][:, 1:]
    found = drift(normal, [row.scales for row in rows])
    return float("nan") if found is None else found.p_value


def summary(results: pd.DataFrame) -> pd.DataFrame:
    """Mean over splits and its standard error in percent (points for errors), a column a set and one for all.

    Of the p-values for drift the share that fires, ≤ 0.01.
    """
    figures = results.drop(columns=["split", "normals", "fresh"])
    fires = figures.columns[figures.columns.str.startswith("drift_")]
    figures[fires] = (figures[fires] <= 0.01).where(figures[fires].notna()).astype(float)
    columns = {}
    for name, part in [*figures.groupby("set"), ("all", figures)]:
        values = 100 * part.drop(columns="set")
        columns[str(name)] = [f"{m:.1f} ± {e:.1f}" for m, e in zip(values.mean(), values.sem(), strict=True)]
    return pd.DataFrame(columns, index=figures.columns.drop("set"))


def distance_from_uniform(results: pd.DataFrame) -> pd.Series[float]:
    """Kolmogorov-Smirnov distance of the p-values of fresh normal images from uniform ones, on `GRID`, a value a set.

    No test: splits share images, so they are not independent.
    """
    shares = results.groupby("set")[[f"p_below_{level:.2f}" for level in GRID]].mean()
    return (shares - GRID).abs().max(axis=1)


def plot(results: pd.DataFrame, path: Path) -> None:
    """Draw the distribution of p-values of fresh normal images, and realised against nominal false discovery rate."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4.2), layout="constrained")
    for name, part in results.groupby("set"):
        alarms = part[[f"p_below_{level:.2f}" for level in GRID]]
        left.plot(GRID, alarms.mean(), label=str(name))
        left.fill_between(GRID, alarms.mean() - 2 * alarms.sem(), alarms.mean() + 2 * alarms.sem(), alpha=0.2)
        rates = part[[f"fdr_{level:.2f}" for level in NOMINAL]]
        right.errorbar(NOMINAL, rates.mean(), 2 * rates.sem(), marker="o", capsize=3, label=str(name))
    titles = (
        (left, 1.0, "p-value a", "share of fresh normal images with p ≤ a"),
        (right, 0.22, "nominal false discovery rate", "realised false discovery rate"),
    )
    for axes, end, x_label, y_label in titles:
        axes.plot([0, end], [0, end], color="black", linewidth=0.8, linestyle="--")
        axes.set(xlim=(0, end), ylim=(0, end), xlabel=x_label, ylabel=y_label, aspect="equal")
        axes.legend(frameon=False)
    figure.savefig(path, dpi=110)


def run(args: argparse.Namespace) -> pd.DataFrame:
    """Measure the splits that the CSV lacks, one row each."""
    config = DetectorConfig(image_size=args.image_size, prototypes=args.prototypes)
    results = pd.read_csv(args.out) if args.out.exists() else pd.DataFrame({"set": [], "split": []})
    done = set(zip(results["set"], results["split"], strict=True))
    for source in args.data:
        missing = [split for split in range(args.splits) if (source.name, split) not in done]
        if not missing:
            continue
        with tempfile.TemporaryDirectory() as folder:
            data = SmallSet(source, Path(folder), args.image_size)
            trained, draw = None, -1
            for split in missing:
                if trained is None or draw != split // BATCHES:
                    draw = split // BATCHES
                    trained = train_once(data, draw, args.normals, config)
                row = pd.DataFrame([split_figures(data, trained, split, args.fresh)])
                results = row if results.empty else pd.concat([results, row], ignore_index=True)
                results.to_csv(args.out, index=False)
    return results


def main() -> None:
    """Measure, print the table, draw on request."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--data", type=Path, nargs="+", required=True, help="folders in MVTec layout")
    options.add_argument("--splits", type=int, default=200, help="a set, from 0")
    options.add_argument("--out", type=Path, required=True, help="CSV, one row a split; is continued")
    options.add_argument("--normals", type=int, default=200, help="normal images to train on")
    options.add_argument("--fresh", type=int, default=100, help="normal images to score")
    options.add_argument("--image-size", type=int, default=DetectorConfig().image_size)
    options.add_argument("--prototypes", type=int, default=DetectorConfig().prototypes)
    options.add_argument("--plot", type=Path, metavar="FILE.png", help="also draw; needs matplotlib")
    args = options.parse_args()
    results = run(args)
    with pd.option_context("display.width", 200, "display.max_rows", None, "display.max_columns", None):
        print(f"{len(results)} splits; percent, mean ± standard error")
        print(summary(results).to_string())
        print("distance of p-values from uniform (Kolmogorov-Smirnov)")
        print(distance_from_uniform(results).round(3).to_string())
    if args.plot is not None:
        plot(results, args.plot)


if __name__ == "__main__":
    main()
