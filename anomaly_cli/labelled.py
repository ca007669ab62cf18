"""Learn from labelled anomalies: what is remembered of them, and how much their voices count in the image score."""

from __future__ import annotations

from itertools import product
from pathlib import Path

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
from anomaly_cli.scoring import parallel_map, to_tensor

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
    detector: AnomalyDetector, anomalies: list[Path], run: Run
) -> tuple[Tensor, Tensor, list[tuple[Path, str]]]:
    """Take from labelled anomalies what is remembered of them.

    Returns:
        (images, D) raw cells of the image scale, (A, d) raw hottest cells of the finest scale, and path and reason of
        files that cannot be read.
    """

    def look(path: Path) -> tuple[Tensor, Tensor] | UnreadableImageError:
        try:
            image = to_tensor(load_image(path, run.config.image_size)).to(run.device)
        except UnreadableImageError as error:
            return error
        looks, hot = detector.hot_cells(image, CELLS_OF_ANOMALY)
        return looks, hot[0]

    looks, cells, unreadable = [torch.zeros(0)], [torch.zeros(0)], []
    for path, seen in zip(anomalies, parallel_map(look, anomalies, run.workers), strict=True):
        if isinstance(seen, UnreadableImageError):
            unreadable.append((path, seen.reason))
        else:
            looks.append(seen[0])
            cells.append(seen[1])
    return torch.cat(looks[1:] or looks), torch.cat(cells[1:] or cells), unreadable


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
    seen = [look_at_anomalies(detector, part, run) for part in parts]
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
        rows += _deviations(judge, part, run)
    return np.array(rows).reshape(len(rows), len(detector.deviation_names))


def _deviations(detector: AnomalyDetector, paths: list[Path], run: Run) -> list[NDArray[np.float64]]:
    def measure(path: Path) -> NDArray[np.float64] | None:
        try:
            image = to_tensor(load_image(path, run.config.image_size)).to(run.device)
        except UnreadableImageError:  # named by `look_at_anomalies`
            return None
        deviations: NDArray[np.float64] = detector(image).deviations[0].cpu().double().numpy()
        return deviations

    return [row for row in parallel_map(measure, paths, run.workers) if row is not None]


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
