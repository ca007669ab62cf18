"""What labels do to types without any: `python -m benchmarks.accuracy.labels --data DIR/screw … --out FILE.csv`.

Each type of anomalies of a set is left out once: 3, 6 and 12 anomalies of the other types are labelled, the others of
these types are tested as seen, all of the type left out as unseen. `mislabelled`: normal training images are labelled
anomalous instead. A set is trained once without labels; its classifiers are then fitted on the same descriptors by the
product's own functions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anomaly_cli.detector.anomaly_detector import AnomalyDetector
from anomaly_cli.detector.anomaly_distance import append_labelled_weight
from anomaly_cli.detector.backbones.build import build_backbone
from anomaly_cli.detector.calibration import Calibration
from anomaly_cli.detector.devices import choose_device
from anomaly_cli.detector.labelled_anomalies import fit_labelled
from anomaly_cli.scoring.parallel import parallel_map, worker_count
from anomaly_cli.scoring.pixels import to_tensor
from anomaly_cli.statistics.image_metrics import image_metrics
from anomaly_cli.training.fit import TrainedDetector, train_detector
from anomaly_cli.training.labelled_fit import cross_fit
from anomaly_cli.training.run import TrainingContext
from anomaly_cli.training.training_set import limit_image_size
from benchmarks.accuracy.datasets import NORMAL
from benchmarks.accuracy.quality import quiet
from benchmarks.jobs import Row, Training, print_means, run_table, set_options, trainings_of

LABELLED = (3, 6, 12)
DRAWS = 2  # of the labelled anomalies
MISLABELLED = (4, 12)

Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Described:
    """Images as the classifier and the score see them: (N, D) descriptors and (N, E) deviations."""

    descriptors: Tensor
    deviations: NDArray[np.float64]


def train_without_labels(job: Training) -> tuple[TrainedDetector, TrainingContext]:
    """Train, and keep the detectors of the folds and how images are read."""
    workers = worker_count()
    config = limit_image_size(job.config, job.data.normal, workers)
    run = TrainingContext(config, choose_device("auto"), workers, quiet)
    return train_detector(job.data.normal, [], build_backbone(config.backbone, seed=config.seed), run), run


def describe(paths: list[Path], detectors: list[AnomalyDetector], run: TrainingContext) -> Described:
    """Describe each image by its detector."""

    def one(item: tuple[Path, AnomalyDetector]) -> tuple[Tensor, Tensor]:
        image = to_tensor(run.load(item[0])).to(run.device)
        return item[1].descriptors(image).cpu(), item[1](image).deviations.cpu()

    described, deviations = zip(*parallel_map(one, zip(paths, detectors, strict=True), run.workers), strict=True)
    return Described(torch.cat(described), torch.cat(deviations).double().numpy())


@dataclass(frozen=True)
class LabelledSet:
    """A trained set, all of whose images are described."""

    trained: TrainedDetector
    normal: Described
    test: Described
    kinds: NDArray[np.str_]

    @property
    def inlying(self) -> Tensor:
        """(images,) bool: normal images that are no outliers."""
        outliers = {*self.trained.outliers}
        return torch.tensor([path not in outliers for path in self.trained.normals.paths])

    @property
    def scores_without(self) -> NDArray[np.float64]:
        """(tested,) scores without labels."""
        return self.trained.calibration.scores(self.test.deviations)[0]

    def scores(self, anomalous: Tensor, kept: Tensor) -> tuple[NDArray[np.float64], float]:
        """Score the test images with (A, D) labelled anomalies, and tell how reliable these are.

        `kept`: (images,) bool, the normal images that calibrate.
        """
        folds = self.trained.folds[kept]
        classifiers, odds = cross_fit(
            self.normal.descriptors[kept],
            folds,
            self.inlying[kept],
            len(self.trained.fold_detectors),
            lambda normal: fit_labelled(normal, anomalous),
        )
        detector = self.trained.detector
        detector.known_anomalies = classifiers[0]
        weights = append_labelled_weight(self.trained.calibration.weights, detector)
        joined = np.concatenate([self.normal.deviations[kept.numpy()], odds.double().numpy()], axis=1)
        known = classifiers[0](self.test.descriptors).double().numpy()
        calibration = Calibration.fit(joined, weights)
        return calibration.scores(np.concatenate([self.test.deviations, known], axis=1))[0], classifiers[0].reliability


def measure(job: Training) -> list[Row]:
    """Train once and measure every choice of labels: a row each."""
    trained, run = train_without_labels(job)
    normals = trained.normals.paths
    own = [trained.fold_detectors[fold] for fold in trained.folds.tolist()]
    paths = [image.path for image in job.data.test]
    described = LabelledSet(
        trained,
        describe(normals, own, run),
        describe(paths, [trained.detector] * len(paths), run),
        np.array([image.kind for image in job.data.test]),
    )
    common: Row = {"set": job.data.name, "seed": job.config.seed}
    return [common | row for row in (*_left_out(described), *_mislabelled(described))]


def _left_out(images: LabelledSet) -> Iterator[Row]:
    """Leave each type out once."""
    kinds, everything = images.kinds, torch.ones(len(images.normal.descriptors), dtype=torch.bool)
    before = images.scores_without
    types = sorted({*kinds} - {NORMAL})
    for number, left_out in enumerate(types):
        pool = np.flatnonzero((kinds != NORMAL) & (kinds != left_out))
        for count in (each for each in LABELLED if each < len(pool)):
            for draw in range(DRAWS):
                chosen = np.random.default_rng((number, count, draw)).permutation(pool)[:count]
                after, reliability = images.scores(images.test.descriptors[chosen], everything)
                tested = np.ones(len(kinds), bool)
                tested[chosen] = False
                yield {
                    "left_out": left_out,
                    "labelled": count,
                    "draw": draw,
                    "seen_before": _auroc(before, kinds, tested & (kinds != left_out)),
                    "seen": _auroc(after, kinds, tested & (kinds != left_out)),
                    "unseen_before": _auroc(before, kinds, tested & ((kinds == left_out) | (kinds == NORMAL))),
                    "unseen": _auroc(after, kinds, tested & ((kinds == left_out) | (kinds == NORMAL))),
                    "reliability": reliability,
                }


def _mislabelled(images: LabelledSet) -> Iterator[Row]:
    """Label normal training images anomalous, and leave them out of the calibration."""
    before = images.scores_without
    everything = np.ones(len(images.kinds), bool)
    pool = np.flatnonzero(images.inlying.numpy())
    for count in (each for each in MISLABELLED if 3 * each <= len(pool)):
        for draw in range(DRAWS):
            chosen = torch.from_numpy(np.random.default_rng((count, draw)).permutation(pool)[:count])
            kept = torch.ones(len(images.normal.descriptors), dtype=torch.bool)
            kept[chosen] = False
            after, reliability = images.scores(images.normal.descriptors[chosen], kept)
            yield {
                "left_out": "",
                "labelled": count,
                "draw": draw,
                "mislabelled_before": _auroc(before, images.kinds, everything),
                "mislabelled": _auroc(after, images.kinds, everything),
                "reliability": reliability,
            }


def _auroc(scores: NDArray[np.float64], kinds: NDArray[np.str_], tested: Bools) -> float:
    return image_metrics((kinds != NORMAL)[tested], scores[tested]).image_auroc


def main() -> None:
    """Measure and print the means."""
    options = set_options(__doc__)
    options.set_defaults(seeds=1)
    args = options.parse_args()
    results = run_table(args, measure, trainings_of)
    for figure in ("seen_before", "seen", "unseen_before", "unseen", "mislabelled_before", "mislabelled"):
        print_means(results, ["labelled"], figure)


if __name__ == "__main__":
    main()
