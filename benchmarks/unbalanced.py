"""What labelled anomalies bring: `python -m benchmarks.unbalanced --data DIR/screw … --out FILE.csv`.

γ is the share of labelled anomalies in the training set. `same`: drawn from all kinds of anomalies, tested on the
others. `one kind`: all of one kind, tested on the other kinds only; each kind in turn. In both, every γ is tested on
the same images. The baseline is a plain classifier on the same pooled features: logistic regression, class-balanced.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from anomaly_cli import pipeline
from anomaly_cli.backbone import Backbone, build_backbone
from anomaly_cli.config import DetectorConfig
from anomaly_cli.detector import scale_features
from anomaly_cli.images import load_image
from anomaly_cli.metrics import image_metrics
from anomaly_cli.scales import IMAGE_SCALE
from anomaly_cli.scoring import parallel_map, to_tensor, worker_count
from benchmarks.datasets import AnomalySet, TestImage, read_mvtec, subsample

RATES = (0.0, 0.01, 0.05, 0.1, 0.2)
MIN_OF_KIND = 8  # anomalies; smaller kinds are not labelled alone
LABELLED_SHARE = 0.5  # at most so many anomalies are ever labelled, so that the test images stay the same


@dataclass(frozen=True)
class Setting:
    """One choice of which anomalies may be labelled, in the order they are taken, and of the test images."""

    name: str
    pool: list[TestImage]
    data: AnomalySet


def settings_of(data: AnomalySet, seed: int) -> Iterator[Setting]:
    """Split the anomalies into those that may be labelled and those that are tested on."""
    rng = np.random.default_rng(seed)
    anomalous = [image for image in data.test if image.anomalous]
    order = [anomalous[i] for i in rng.permutation(len(anomalous))]
    pool = order[: int(LABELLED_SHARE * len(order))]
    yield Setting("same", pool, replace(data, test=[image for image in data.test if image not in pool]))
    kinds = sorted({image.kind for image in anomalous})
    if len(kinds) == 1:
        return
    for kind in kinds:
        pool = [image for image in order if image.kind == kind]
        if len(pool) >= MIN_OF_KIND:
            yield Setting("one kind", pool, replace(data, test=[image for image in data.test if image.kind != kind]))


def auroc(data: AnomalySet, known: list[Path], config: DetectorConfig) -> float:
    """Train with the known anomalies and rank the test images."""
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model.safetensors"
        pipeline.train(data.normal, model, config, anomalies=known, progress=quiet)
        rows = pipeline.score([image.path for image in data.test], model, progress=quiet).readable
    anomalous = {str(image.path) for image in data.test if image.anomalous}
    return image_metrics([row.path in anomalous for row in rows], [row.score or 0.0 for row in rows]).image_auroc


def quiet(_phase: str, _done: int, _total: int, /) -> None:
    """Report no progress."""


def pooled(paths: list[Path], backbone: Backbone, image_size: int) -> NDArray[np.float32]:
    """Compute the raw cell of the image scale of each image: (N, D)."""

    def look(path: Path) -> NDArray[np.float32]:
        with torch.inference_mode():
            features = scale_features(backbone, to_tensor(load_image(path, image_size)), (IMAGE_SCALE,))
        values: NDArray[np.float32] = features[IMAGE_SCALE].flatten().numpy()
        return values

    return np.stack(list(parallel_map(look, paths, worker_count())))


def classifier_auroc(data: AnomalySet, known: list[Path], config: DetectorConfig) -> float:
    """Rank the test images by a plain classifier between normal and known anomalous images."""
    if not known:
        return float("nan")
    backbone = build_backbone(config.backbone, None, config.seed)
    train = pooled([*data.normal, *known], backbone, config.image_size)
    labels = [0] * len(data.normal) + [1] * len(known)
    classifier = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=1000))
    classifier.fit(train, labels)
    scores = classifier.decision_function(pooled([image.path for image in data.test], backbone, config.image_size))
    return image_metrics([image.anomalous for image in data.test], scores).image_auroc


def measure(setting: Setting, rate: float, config: DetectorConfig) -> dict[str, str | float]:
    """Compare the detector with and without labels, and the classifier, on the same test images."""
    data = setting.data
    count = round(len(data.normal) * rate / (1 - rate)) if rate else 0
    known = sorted(image.path for image in setting.pool[:count])
    return {
        "set": data.name,
        "setting": setting.name,
        "rate": rate,
        "seed": config.seed,
        "kind": setting.pool[0].kind if setting.name != "same" else "",
        "labelled": len(known),
        "image_auroc": auroc(data, known, config),
        "classifier_auroc": classifier_auroc(data, known, config),
    }


def main() -> None:
    """Measure, and print the means over seeds and kinds."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--data", type=Path, nargs="+", required=True, help="folders in MVTec layout")
    options.add_argument("--rates", type=float, nargs="+", default=RATES)
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--max-train", type=int, default=250)
    options.add_argument("--max-test", type=int, default=150)
    options.add_argument("--out", type=Path, required=True, help="CSV, one row a set, setting, rate and seed")
    args = options.parse_args()
    rows = []
    for folder in args.data:
        for seed in range(args.seeds):
            data = subsample(read_mvtec(folder), args.max_train, args.max_test, seed)
            for setting in settings_of(data, seed):
                for rate in args.rates if setting.name == "same" else (0.0, 0.05):
                    rows.append(measure(setting, rate, DetectorConfig(seed=seed)))
                    pd.DataFrame(rows).to_csv(args.out, index=False, float_format="%.5g")
                    print(rows[-1], flush=True)
    table = pd.DataFrame(rows).pivot_table(
        index=["setting", "rate"], columns="set", values=["image_auroc", "classifier_auroc"], sort=False
    )
    with pd.option_context("display.width", 200, "display.max_columns", None):
        print(table.round(3).to_string())


if __name__ == "__main__":
    main()
