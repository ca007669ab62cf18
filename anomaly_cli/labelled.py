"""Learn from labelled anomalies: what is remembered of them, and how much their voices count in the image score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anomaly_cli.calibration import Calibration
from anomaly_cli.detector import AnomalyDetector
from anomaly_cli.errors import UnreadableImageError
from anomaly_cli.images import load_image
from anomaly_cli.known import CELLS_OF_ANOMALY, KNOWN_NAMES, KnownAnomalies, fit_known
from anomaly_cli.metrics import image_metrics
from anomaly_cli.normals import Cells, Run
from anomaly_cli.scales import IMAGE_SCALE
from anomaly_cli.scoring import to_tensor

LOUDNESS = (0.0, 0.5, 1.0, 2.0)  # of a voice of known anomalies, in times of its usual weight


@dataclass(frozen=True)
class Looks:
    """What is remembered of labelled anomalies.

    Attributes:
        looks: (images, D) raw cells of the image scale.
        hot: (A, d) raw hottest cells of the finest scale.
    """

    looks: Tensor
    hot: Tensor

    @classmethod
    def join(cls, seen: Sequence[Looks | None]) -> Looks | None:
        """Join those of several files; None where none of them could be read."""
        readable = [each for each in seen if each is not None]
        if not readable:
            return None
        return cls(torch.cat([each.looks for each in readable]), torch.cat([each.hot for each in readable]))


@dataclass(frozen=True)
class Labelled:
    """Files of labelled anomalies, and of each what is remembered; None for those that cannot be read.

    Attributes:
        unreadable: path and reason of the latter.
    """

    paths: list[Path]
    seen: list[Looks | None]
    unreadable: list[tuple[Path, str]]


def learn_known_anomalies(
    detectors: list[AnomalyDetector], cells: dict[str, Cells], folds: Tensor, anomalies: list[Path], run: Run
) -> Labelled:
    """Fit what labelled anomalies add, for every detector against the normal images that it knows."""
    labelled = look_at_anomalies(detectors[0], anomalies, run)
    looks = Looks.join(labelled.seen)
    if looks is not None:
        for fold, detector in enumerate(detectors, start=-1):
            detector.known_anomalies = _fit(detector, cells[IMAGE_SCALE], folds != fold, looks, run)
    return labelled


def _fit(detector: AnomalyDetector, normal: Cells, kept: Tensor, looks: Looks, run: Run) -> KnownAnomalies:
    """Compare labelled anomalies with the cells of those normal images that `kept` (images,) names."""
    embeddings = detector.scale(detector.local_names[0]).embed(looks.hot)
    return fit_known(normal.values[kept[normal.sources], 0].to(run.device), looks.looks, embeddings, run.config.seed)


def look_at_anomalies(detector: AnomalyDetector, anomalies: list[Path], run: Run) -> Labelled:
    """Take from labelled anomalies what is remembered of them."""

    def look(path: Path) -> dict[str, Any]:
        try:
            image = to_tensor(load_image(path, run.config.image_size)).to(run.device)
        except UnreadableImageError as error:
            return {"unreadable": error.reason}
        looks, hot = detector.hot_cells(image, CELLS_OF_ANOMALY)
        return {"looks": looks.cpu(), "hot": hot[0].cpu()}

    results = list(run.map_images("anomalies", "looking at the known anomalies", look, anomalies))
    device = run.device
    seen = [
        None if "unreadable" in each else Looks(each["looks"].to(device), each["hot"].to(device)) for each in results
    ]
    failed = zip(anomalies, results, strict=True)
    return Labelled(anomalies, seen, [(path, each["unreadable"]) for path, each in failed if "unreadable" in each])


def measure_labelled(
    detector: AnomalyDetector, normal: Cells, folds: Tensor, labelled: Labelled, run: Run
) -> NDArray[np.float64]:
    """Measure labelled anomalies as if they were new, each by comparisons fitted on those of the other folds.

    Args:
        detector: whose memories know no anomaly.
        normal: cells of the image scale.
        folds: (images,) of the normal images; one is left out of each fit, as where normal images are held out, for the
            answers to compare.
        labelled: the anomalies; those that cannot be read are passed over.
        run: settings and machine.

    Returns:
        (A, E) deviations; A = 0 where fewer than two can be read.
    """
    count = int(folds.max()) + 1
    rows = []
    for fold in range(min(count, len(labelled.paths))):
        others = [each for k in range(count) if k != fold for each in labelled.seen[k::count]]
        looks = Looks.join(others)
        if looks is None:
            continue
        scales = {name: detector.scale(name) for name in detector.scale_names}
        judge = AnomalyDetector(detector.backbone, scales, _fit(detector, normal, folds != fold, looks, run)).eval()
        rows += _deviations(judge, labelled.paths[fold::count], run, f"labelled-{fold}")
    columns = 1 + len(detector.scale_names) + len(KNOWN_NAMES)
    return np.array(rows).reshape(len(rows), columns)


def _deviations(detector: AnomalyDetector, paths: list[Path], run: Run, step: str) -> list[NDArray[np.float64]]:
    def measure(path: Path) -> dict[str, Any]:
        try:
            image = to_tensor(load_image(path, run.config.image_size)).to(run.device)
        except UnreadableImageError:  # named by `look_at_anomalies`
            return {}
        return {"deviations": detector(image).deviations[0].cpu()}

    measured = run.map_images(step, "holding out the known anomalies", measure, paths)
    return [each["deviations"].double().numpy() for each in measured if each]


def weigh_known(
    weights: NDArray[np.float64], normal: NDArray[np.float64], labelled: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Choose how loud the known anomalies speak: as loud as ranks labelled anomalies best that were not learned from.

    Where known anomalies have little in common with one another their voices only disturb, and fall silent.

    Args:
        weights: (E,) with the usual weights of the known anomalies last.
        normal: (n, E) deviations of held-out normal images.
        labelled: (A, E) deviations of labelled anomalies, held out too.

    Returns:
        (E,) weights; the usual ones where there is no labelled anomaly to go by.
    """
    if not len(labelled):
        return weights
    labels = np.arange(len(normal) + len(labelled)) >= len(normal)
    both = np.concatenate([normal, labelled])

    def quality(factors: tuple[float, ...]) -> tuple[float, float]:
        scores = Calibration.fit(normal, _louder(weights, factors)).scores(both)[0]
        # Among equals the one nearest to the usual weights.
        return image_metrics(labels, scores).image_auroc, -sum(abs(factor - 1) for factor in factors)

    return _louder(weights, max(product(LOUDNESS, repeat=len(KNOWN_NAMES)), key=quality))


def _louder(weights: NDArray[np.float64], factors: tuple[float, ...]) -> NDArray[np.float64]:
    ours = weights.copy()
    ours[-len(factors) :] *= factors
    return ours
