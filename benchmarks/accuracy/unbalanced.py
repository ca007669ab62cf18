"""What labelled anomalies bring: `python -m benchmarks.accuracy.unbalanced --data DIR/screw … --out FILE.csv`.

γ is the share of labelled anomalies in the training set. `same types`: drawn from all types of anomalies, and tested on
others of these types. `one type`: all of one type; the others of that type are reported as seen, all other types as
unseen. Every γ is tested on the same images. The baseline is a plain classifier on the pooled features of the embedded
backbone: logistic regression, class-balanced.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from anomaly_cli.config import DetectorConfig
from anomaly_cli.detector.backbones.backbone import EMBEDDED, Backbone
from anomaly_cli.detector.backbones.build import build_backbone
from anomaly_cli.detector.features import scale_features
from anomaly_cli.detector.scales import IMAGE_SCALE
from anomaly_cli.images.decode import load_image
from anomaly_cli.scoring import score as scoring
from anomaly_cli.scoring.parallel import parallel_map, worker_count
from anomaly_cli.scoring.pixels import to_tensor
from anomaly_cli.statistics.image_metrics import image_metrics
from anomaly_cli.training import train as training
from benchmarks.accuracy.datasets import AnomalySet, TestImage, subsample
from benchmarks.accuracy.quality import quiet
from benchmarks.jobs import Row, peak_mb, print_means, run_table, set_options

RATES = (0.0, 0.01, 0.05, 0.1, 0.2)
MIN_OF_TYPE = 8  # anomalies; smaller types are not labelled alone
LABELLED_SHARE = 0.5  # at most so many anomalies are ever labelled, so that the test images stay the same
SAME, ONE = "same types", "one type"

Scores = dict[Path, float]


@dataclass(frozen=True)
class Setting:
    """One choice of which anomalies may be labelled, in the order they are taken, and of the test images."""

    name: str
    pool: list[TestImage]
    data: AnomalySet

    @property
    def seen(self) -> set[str]:
        """Types that may be labelled."""
        return {image.kind for image in self.pool}


@dataclass(frozen=True)
class Job:
    """One setting and share of labels."""

    setting: Setting
    rate: float
    config: DetectorConfig

    @property
    def labelled(self) -> list[Path]:
        """The anomalies that are labelled: γ of the training set, or all there are."""
        count = round(len(self.setting.data.normal) * self.rate / (1 - self.rate))
        return sorted(image.path for image in self.setting.pool[:count])


def settings_of(data: AnomalySet, types: int, seed: int) -> Iterator[Setting]:
    """Split the anomalies into those that may be labelled and those that are tested on.

    Args:
        data: with several types of anomalies, for the settings of one type.
        types: how many of them are labelled alone, drawn by the seed.
        seed: of all draws.
    """
    rng = np.random.default_rng(seed)
    anomalous = [image for image in data.test if image.anomalous]
    order = [anomalous[i] for i in rng.permutation(len(anomalous))]
    yield _setting(SAME, order, data)
    by_type = {kind: [image for image in order if image.kind == kind] for kind in sorted({i.kind for i in order})}
    alone = [kind for kind, images in by_type.items() if len(images) >= MIN_OF_TYPE]
    if len(by_type) > 1:
        for i in rng.permutation(len(alone))[:types]:
            yield _setting(ONE, by_type[alone[i]], data)


def _setting(name: str, order: list[TestImage], data: AnomalySet) -> Setting:
    pool = order[: int(LABELLED_SHARE * len(order))]
    taken = {image.path for image in pool}
    return Setting(name, pool, replace(data, test=[image for image in data.test if image.path not in taken]))


def detector_scores(data: AnomalySet, labelled: list[Path], config: DetectorConfig) -> tuple[Scores, float]:
    """Train with the labelled anomalies and score the test images; also tell the seconds of training."""
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model.safetensors"
        start = time.perf_counter()
        training.train(data.normal, model, config, anomalies=labelled, progress=quiet)
        train_s = time.perf_counter() - start
        rows = scoring.score([image.path for image in data.test], model, progress=quiet).readable
    return {Path(row.path): row.score or 0.0 for row in rows}, train_s


def pooled(paths: list[Path], backbone: Backbone, image_size: int) -> NDArray[np.float32]:
    """Compute the raw cell of the image scale of each image: (N, D)."""

    def embed(path: Path) -> NDArray[np.float32]:
        with torch.inference_mode():
            features = scale_features(backbone, to_tensor(load_image(path, image_size)), (IMAGE_SCALE,))
        values: NDArray[np.float32] = features[IMAGE_SCALE].flatten().numpy()
        return values

    return np.stack(list(parallel_map(embed, paths, worker_count())))


def classifier_scores(data: AnomalySet, labelled: list[Path], config: DetectorConfig) -> Scores:
    """Score the test images by a plain classifier between normal and labelled anomalous images, of which there are."""
    backbone = build_backbone(EMBEDDED)
    train = pooled([*data.normal, *labelled], backbone, config.image_size)
    labels = [0] * len(data.normal) + [1] * len(labelled)
    classifier = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=1000))
    classifier.fit(train, labels)
    paths = [image.path for image in data.test]
    scores = classifier.decision_function(pooled(paths, backbone, config.image_size))
    return dict(zip(paths, scores.tolist(), strict=True))


def auroc(test: list[TestImage], scores: Scores, types: set[str], *, among: bool) -> float:
    """Image AUROC of the normal images against the anomalies of these types, or of all others; NaN if there is none."""
    chosen = [image for image in test if not image.anomalous or (image.kind in types) is among]
    labels = [image.anomalous for image in chosen]
    if not any(labels):
        return float("nan")
    return image_metrics(labels, [scores[image.path] for image in chosen]).image_auroc


def measure(job: Job) -> list[Row]:
    """Compare the detector and the classifier on the same test images: one row for seen types, one for unseen."""
    setting, labelled = job.setting, job.labelled
    test, seen = setting.data.test, setting.seen
    ours, train_s = detector_scores(setting.data, labelled, job.config)
    plain = classifier_scores(setting.data, labelled, job.config) if labelled else None
    common: Row = {"set": setting.data.name, "seed": job.config.seed, "setting": setting.name, "rate": job.rate}
    common |= {"type": "" if setting.name == SAME else setting.pool[0].kind, "labelled": len(labelled)}
    rows = []
    for among, tested in ((True, "seen"), (False, "unseen")):
        figure = auroc(test, ours, seen, among=among)
        if not np.isnan(figure):
            baseline = float("nan") if plain is None else auroc(test, plain, seen, among=among)
            rows.append(common | {"tested": tested, "image_auroc": figure, "classifier_auroc": baseline})
    return [row | {"train_s": train_s, "peak_mb": peak_mb()} for row in rows]


def jobs_of(args: argparse.Namespace, sets: list[AnomalySet]) -> Iterator[Job]:
    """Make one job a set, seed, setting and rate; a rate that labels no more than the one before is left out."""
    for data in sets:
        for seed in range(args.seeds):
            drawn = subsample(data, args.max_train, args.max_test, seed)
            for setting in settings_of(drawn, args.types, seed):
                before = -1
                for rate in args.rates:
                    job = Job(setting, rate, DetectorConfig(backbone=args.backbone, seed=seed))
                    if len(job.labelled) > before:
                        yield job
                    before = len(job.labelled)


def main() -> None:
    """Measure and print the means."""
    options = set_options(__doc__)
    options.add_argument("--rates", type=float, nargs="+", default=RATES, help="γ, in ascending order")
    options.add_argument("--types", type=int, default=1, help="labelled alone, a set and seed; each seed draws others")
    options.add_argument("--backbone", default=EMBEDDED, help="of the detector")
    args = options.parse_args()
    results = run_table(args, measure, jobs_of)
    for figure in ("image_auroc", "classifier_auroc"):
        print_means(results, ["setting", "tested", "rate"], figure)


if __name__ == "__main__":
    main()
