"""What anomalies among the normal images cost, and whether they are found: `python -m benchmarks.contamination`.

Three questions a set, rate and seed, on the same images:
training: image AUROC on test images after training with anomalies hidden among the normal images, against none;
suspects: share of the hidden ones among the worst tenth of `--audit-normals`;
audit: average precision of `anomaly audit` on a mixed folder, against scoring it with a model of other, clean images.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.metrics import average_precision_score

from anomaly_cli import auditing, pipeline
from anomaly_cli.config import DetectorConfig
from anomaly_cli.metrics import image_metrics
from anomaly_cli.table import Row, read_paths
from benchmarks.datasets import AnomalySet, read_mvtec, subsample

WORST_SHARE = 0.1  # of the audited normal images


def quiet(_phase: str, _done: int, _total: int, /) -> None:
    """Report no progress."""


def hide(data: AnomalySet, rate: float, seed: int) -> tuple[list[Path], AnomalySet]:
    """Choose anomalies that make up `rate` of the normal images once they are among them; test on the others."""
    anomalies = [image.path for image in data.test if image.anomalous]
    random.Random(seed).shuffle(anomalies)
    hidden = set(anomalies[: round(len(data.normal) * rate / (1 - rate))])
    return sorted(hidden), replace(data, test=[image for image in data.test if image.path not in hidden])


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
    report = pipeline.train(normal, model, config, audit_normals=audited, progress=quiet)
    scored = pipeline.score([image.path for image in data.test], model, progress=quiet)
    figures = {"auroc": auroc_of(scored.rows, {str(image.path) for image in data.test if image.anomalous})}
    if hidden:
        worst = {Path(path) for path, _, _ in read_paths(audited)[: max(1, round(WORST_SHARE * len(normal)))]}
        figures["found_in_worst_tenth"] = float(np.mean([path in worst for path in hidden]))
    hits = sum(path in set(hidden) for path in report.suspects)
    return figures | {"suspects": len(report.suspects), "suspects_hidden": hits, "hidden": len(hidden)}


def audit(data: AnomalySet, rate: float, folder: Path, config: DetectorConfig) -> dict[str, float]:
    """Audit one half of the normal images with anomalies mixed in; score the same with a model of the other half."""
    other = replace(data, normal=data.normal[::2])
    hidden, _ = hide(other, rate, config.seed)
    mixed, anomalous = [*other.normal, *hidden], {str(path) for path in hidden}
    model = folder / "reference.safetensors"
    pipeline.train(data.normal[1::2], model, config, progress=quiet)

    def precision(rows: list[Row]) -> float:
        return float(average_precision_score([row.path in anomalous for row in rows], [row.score for row in rows]))

    audited = auditing.audit(mixed, config, progress=quiet)
    reference = pipeline.score(mixed, model, progress=quiet)
    return {"ap_audit": precision(audited.rows), "ap_clean_model": precision(reference.rows)}


def measure(data: AnomalySet, rate: float, config: DetectorConfig) -> dict[str, float | str]:
    """Answer all questions for one set, rate and seed."""
    hidden, rest = hide(data, rate, config.seed)
    with tempfile.TemporaryDirectory() as folder:
        figures = training(rest, hidden, Path(folder), config)
        if hidden:
            figures |= audit(data, rate, Path(folder), config)
    return {"set": data.name, "rate": rate, "seed": config.seed, **figures}


def main() -> None:
    """Measure and print the means over the seeds."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--data", type=Path, nargs="+", required=True, help="folders in MVTec layout")
    options.add_argument("--rates", type=float, nargs="+", default=[0, 0.05, 0.1, 0.2])
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--max-train", type=int, default=250)
    options.add_argument("--max-test", type=int, default=150)
    options.add_argument("--out", type=Path, required=True, help="CSV, one row a set, rate and seed")
    args = options.parse_args()
    rows = []
    for folder in args.data:
        for seed in range(args.seeds):
            data = subsample(read_mvtec(folder), args.max_train, args.max_test, seed)
            for rate in args.rates:
                rows.append(measure(data, rate, DetectorConfig(seed=seed)))
                pd.DataFrame(rows).to_csv(args.out, index=False, float_format="%.5g")
                print(rows[-1], flush=True)
    means = pd.DataFrame(rows).drop(columns="seed").groupby(["set", "rate"], sort=False).mean()
    print(means.round(3).to_string())


if __name__ == "__main__":
    main()
