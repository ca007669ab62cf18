"""Learn from labelled anomalies: what is remembered of them, and how much their voices count in the image score."""

from __future__ import annotations

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
from anomaly_cli.known import CELLS_OF_ANOMALY, KNOWN_NAMES, fit_known
from anomaly_cli.metrics import image_metrics
from anomaly_cli.normals import Cells, Run
from anomaly_cli.scales import IMAGE_SCALE
from anomaly_cli.scoring import to_tensor

LOUDNESS = (0.0, 0.5, 1.0, 2.0)  # of a voice of known anomalies, in times of its usual weight


def learn_known_anomalies(
    detectors: list[AnomalyDetector], cells: dict[str, Cells], folds: Tensor, anomalies: list[Path], run: Run
) -> tuple[int, list[tuple[Path, str]]]:
    """Fit what labelled anomalies add, for every detector against the normal images that it knows.

    Returns:
        How many of the files could be read; path and reason of the others.
    """
    looks, hot, unreadable = look_at_anomalies(detectors[0], anomalies, run)
    if not len(looks):
        return 0, unreadable
    normal = cells[IMAGE_SCALE]
    for fold, detector in enumerate(detectors, start=-1):
        chosen = folds[normal.sources] != fold
        embeddings = detector.scale(detector.local_names[0]).embed(hot)
        detector.known_anomalies = fit_known(
            normal.values[chosen, 0].to(run.device), looks, embeddings, run.config.seed
        )
    return len(looks), unreadable


def look_at_anomalies(
    detector: AnomalyDetector, anomalies: list[Path], run: Run, step: str = "anomalies"
) -> tuple[Tensor, Tensor, list[tuple[Path, str]]]:
    """Take from labelled anomalies what is remembered of them.

    Args:
        detector: whose hottest cells are taken.
        anomalies: files.
        run: settings and machine.
        step: name under which a run that can be resumed saves the result.

    Returns:
        (images, D) raw cells of the image scale, (A, d) raw hottest cells of the finest scale, and path and reason of
        files that cannot be read.
    """

    def look(path: Path) -> dict[str, Any]:
        try:
            image = to_tensor(load_image(path, run.config.image_size)).to(run.device)
        except UnreadableImageError as error:
            return {"unreadable": error.reason}
        looks, hot = detector.hot_cells(image, CELLS_OF_ANOMALY)
        return {"looks": looks.cpu(), "hot": hot[0].cpu()}

    looks, cells, unreadable = [torch.zeros(0)], [torch.zeros(0)], []
    seen = run.map_images(step, "looking at the known anomalies", look, anomalies)
    for path, each in zip(anomalies, seen, strict=True):
        if "unreadable" in each:
            unreadable.append((path, each["unreadable"]))
        else:
            looks.append(each["looks"])
            cells.append(each["hot"])
    device = run.device
    return torch.cat(looks[1:] or looks).to(device), torch.cat(cells[1:] or cells).to(device), unreadable


def measure_labelled(
    detector: AnomalyDetector, normal: Cells, folds: Tensor, anomalies: list[Path], run: Run
) -> NDArray[np.float64]:
    """Measure labelled anomalies as if they were new, each by comparisons fitted on those of the other folds.

    Args:
        detector: whose memories know no anomaly.
        normal: cells of the image scale.
        folds: (images,) of the normal images; one is left out of each fit, as where normal images are held out, for the
            answers to compare.
        anomalies: files; those that cannot be read are passed over.
        run: settings and machine.

    Returns:
        (A, E) deviations; A = 0 where fewer than two can be read.
    """
    count = int(folds.max()) + 1
    parts = [anomalies[fold::count] for fold in range(count)]
    seen = [look_at_anomalies(detector, part, run, f"anomalies-{fold}") for fold, part in enumerate(parts)]
    rows = []
    for fold, part in enumerate(parts):
        others = [each for k, each in enumerate(seen) if k != fold and len(each[0])]
        if not part or not others:
            continue
        embeddings = detector.scale(detector.local_names[0]).embed(torch.cat([hot for _, hot, _ in others]))
        looks = torch.cat([each for each, _, _ in others])
        kept = normal.values[folds[normal.sources] != fold, 0].to(run.device)
        fitted = fit_known(kept, looks, embeddings, run.config.seed)
        scales = {name: detector.scale(name) for name in detector.scale_names}
        judge = AnomalyDetector(detector.backbone, scales, fitted).eval()
        rows += _deviations(judge, part, run, f"labelled-{fold}")
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
