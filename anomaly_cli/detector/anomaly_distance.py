"""Stage 2: weights of scales and score components from synthetic defects, and the calibration that follows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anomaly_cli.detector.anomaly_detector import AnomalyDetector, Detection
from anomaly_cli.detector.calibration import Calibration, ScoreScale
from anomaly_cli.detector.scales import COARSE_SCALE, LEARNED_SCALE, POOLED_SCALES, TURNED_SCALE
from anomaly_cli.statistics.prediction_limit import MIN_SPREAD

Floats = NDArray[np.float64]

# Weights in the image score, where the pooled scales together have 1; d is the sensitivity to synthetic defects.
COARSE_WEIGHT = 2.0  # of the coarse cells at d = 1 of the map
MAX_COARSE_WEIGHT = 2.0
TURNED_WEIGHT = 10.0  # of the turned copies, and of their embedding, where the turn of a new normal image is certain
MIN_MAP_WEIGHT = 0.3  # of the map at d = 0, as on photographs
CLEAR_SENSITIVITY = 2.5  # d at which the map weighs 1 more
CLEARER_SENSITIVITY = 8.0  # d · (d / d of the coarse cells) at which the map weighs 1 more
MIN_SENSITIVITY = 0.03  # added to each d
REFERENCE_SIDE = 256  # pixels; d is scaled by the side of the image
MIN_SHARE = 0.05  # of the sum of the weights, for each component
FEW_IMAGES = 16  # normal images of which d is about half of what it is with many
DEFAULT_SENSITIVITIES = 2.0, 1.0  # of map and coarse cells, assumed before synthetic defects are measured
MAX_SENSITIVITY = 5.0  # at most; nearly identical normal images have almost no spread
CELL_SAMPLE = 200_000  # distances of each scale that its mean is estimated from


def calibrate(
    detector: AnomalyDetector,
    measured: list[list[Tensor]],
    weights: Floats,
    known: Tensor | None = None,
) -> tuple[Calibration, ScoreScale]:
    """Set every unit from the distance maps of held-out normal images.

    Args:
        detector: with its cell means and weights set.
        measured: for every image one map of each scale.
        weights: (E,) of the deviations in the image score.
        known: (images, 1) odds of `LabelledAnomalyClassifier`; None without labelled anomalies.
    """
    maps = (detection.anomaly_maps for detection in _combine(detector, measured))
    peaks, medians = zip(*((float(each.nan_to_num().max()), float(each.nanmedian())) for each in maps), strict=True)
    peak_cells, typical = np.array(peaks), float(np.median(medians))
    deviations = deviations_of(detector, measured, known)
    return Calibration.fit(deviations, weights), ScoreScale(typical, ScoreScale.fit(peak_cells).limit)


def sensitivities(normal_logs: Floats, defect_logs: Floats, numbers: list[int], planted_in: list[int]) -> Floats:
    """Measure how sensitive each deviation is to a synthetic defect: Cohen's d, averaged over the defects.

    Args:
        normal_logs: (images, E) logarithms of deviations of held-out normal images.
        defect_logs: (defects, E) those of the same images with a defect.
        numbers: indices of the normal images whose standard deviation is the unit.
        planted_in: (defects,) index of the normal image that each defect was put in.

    Returns:
        (E,) d = mean increase of the logarithm by a defect, in standard deviations of normal images, in [0, 5].
    """
    spread = np.maximum(normal_logs[numbers].std(axis=0), MIN_SPREAD)
    raised: Floats = ((defect_logs - normal_logs[planted_in]) / spread).mean(axis=0)
    return raised.clip(0, MAX_SENSITIVITY)


def scale_weights(normal_logs: Floats, defect_logs: Floats, numbers: list[int], planted_in: list[int]) -> Floats:
    """Weigh each local scale by 1 + d² in the fused map: equally where none is sensitive, else by signal power.

    Arguments as in `sensitivities`, with a column for each local scale. Returns (E,).
    """
    weights: Floats = 1 + sensitivities(normal_logs, defect_logs, numbers, planted_in) ** 2
    return weights


def component_weights(
    detector: AnomalyDetector, image_size: int, normal_images: int, sensitivity: tuple[float, float]
) -> Floats:
    """Weigh the deviations in the image score.

    Components: the pooled scales (objects, style) share the weight 1. The weight of the coarse cells grows with the
    sensitivity of the map to synthetic defects: on a production line an unknown cell is a defect, photographs always
    have some. The map has many more cells and is mostly noise unless defects are clear on it, or far clearer than on
    the coarse cells. Sensitivities count less for small images, whose map has few cells, and more where normal images
    are few: memories with gaps hide faint defects. No component weighs so little that an image far beyond normal in it
    alone is missed. Turned copies and their embedding weigh as much as can be told about the turns of new normal
    images, and the labelled anomalies the more the more there are.

    Args:
        detector: with its classifier of labelled anomalies.
        image_size: side of the images, pixels.
        normal_images: number of images that the detector learned from, at least 1.
        sensitivity: of the fused map and of the coarse cells, as `sensitivities` gives them.

    Returns:
        (E,) weights ≥ 0.
    """
    factor = image_size / REFERENCE_SIDE * (1 + FEW_IMAGES / normal_images)
    d, coarse_d = (MIN_SENSITIVITY + each * factor for each in sensitivity)
    pooled = [name for name in detector.scale_names if name in POOLED_SCALES]
    weight_of = dict.fromkeys(pooled, 1 / len(pooled))
    weight_of[COARSE_SCALE] = min(COARSE_WEIGHT * d, MAX_COARSE_WEIGHT)
    weight_of["map"] = MIN_MAP_WEIGHT + (d / CLEAR_SENSITIVITY) ** 4 + (d * d / coarse_d / CLEARER_SENSITIVITY) ** 4
    least = MIN_SHARE * sum(weight_of.values())
    weight_of = {name: max(weight, least) for name, weight in weight_of.items()}
    if detector.backbone.turn_head is not None:
        for name in (TURNED_SCALE, LEARNED_SCALE):
            weight_of[name] = TURNED_WEIGHT * float(detector.backbone.turn_information)
    weights = np.array([weight_of.get(name, 0.0) for name in ("map", *detector.scale_names)])
    return append_labelled_weight(weights, detector)


def append_labelled_weight(weights: Floats, detector: AnomalyDetector) -> Floats:
    """Append the weight of the labelled anomalies, if there are any, to those of map and scales."""
    if detector.known_anomalies is None:
        return weights
    return np.append(weights, detector.known_anomalies.weight * weights.sum())


def deviations_of(detector: AnomalyDetector, measured: Sequence[list[Tensor]], known: Tensor | None = None) -> Floats:
    """Join the deviations of maps and scales with those from the labelled anomalies: (images, E)."""
    columns = torch.cat([detection.deviations for detection in _combine(detector, measured)]).cpu()
    joined: Floats = torch.cat([columns] if known is None else [columns, known], dim=1).double().numpy()
    return joined


def _combine(detector: AnomalyDetector, measured: Sequence[list[Tensor]]) -> Iterator[Detection]:
    device = next(detector.buffers()).device
    return (detector.combine([m.to(device) for m in maps]) for maps in measured)


def set_cell_means(detectors: list[AnomalyDetector], measured: list[list[Tensor]], seed: int) -> None:
    """Set the mean distance of a cell of each scale from held-out normal images, in all detectors."""
    generator = torch.Generator().manual_seed(seed)
    for i, name in enumerate(detectors[0].scale_names):
        cells = torch.cat([maps[i].flatten() for maps in measured])
        cells = cells[~cells.isnan()]  # of ignored cells
        if len(cells) > CELL_SAMPLE:
            cells = cells[torch.randint(0, len(cells), (CELL_SAMPLE,), generator=generator)]
        for detector in detectors:
            detector.scale(name).cell_mean.copy_(cells.mean().clamp(min=1e-6))
