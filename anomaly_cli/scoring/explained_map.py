"""Anomaly maps that explain the score: where an image scores more than its map shows, the map is raised to the score.

The image score has components without a map, and sums many weak signs. A user who sees a flagged image with a calm map
learns nothing, and a region at its peak would be chance.
"""

from __future__ import annotations

from enum import StrEnum

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from anomaly_cli.detector.anomaly_detector import AnomalyDetector
from anomaly_cli.detector.attribution import pooled_attribution
from anomaly_cli.detector.calibration import Calibration
from anomaly_cli.detector.features import feature_maps, reduced_copies
from anomaly_cli.detector.inspected import inspected_cells
from anomaly_cli.detector.scales import POOLED_SCALES
from anomaly_cli.images.decode import LoadedImage
from anomaly_cli.scoring.pixels import inspected_tensor, to_tensor

SHARPNESS = 16  # power of the relative map that a raise is distributed by: cells below nine tenths of the peak stay

Map = NDArray[np.float32]


class RegionSource(StrEnum):
    """What places the region of an image: its anomaly map, or the attribution of a pooled scale."""

    MAP = "map"
    IMAGE = "image"


def explain_map(
    detector: AnomalyDetector,
    calibration: Calibration,
    image: LoadedImage,
    anomaly_map: Map,
    deviations: NDArray[np.float64],
) -> tuple[Map, str | None]:
    """Raise an anomaly map to the score of its image where it is lower everywhere.

    If a pooled scale contributes most to the score, the map is joined by the attribution of its distance to the cells;
    else its own highest cells are raised.

    Args:
        detector: that measured the image.
        calibration: of its deviations.
        image: at network size; its pixels are needed for an attribution only.
        anomaly_map: (h, w) in units of the limit of normal.
        deviations: (E,) > 0.

    Returns:
        (h, w) map whose largest value is at least the score, and the pooled scale that places its peak, if one does.
    """
    score = float(calibration.scores(deviations[None])[0][0])
    peak = float(anomaly_map.max())
    if peak >= score:
        return anomaly_map, None
    component = detector.deviation_names[calibration.largest_component(deviations)]
    if component in POOLED_SCALES:
        shares = _attribution(detector, image, component, anomaly_map.shape)
        if shares.max() > 0:
            return np.maximum(anomaly_map, shares * np.float32(score / shares.max())), component
    raised: Map = anomaly_map + np.float32(score - peak) * (anomaly_map / np.float32(peak)) ** SHARPNESS
    return raised, None


@torch.inference_mode()
def _attribution(detector: AnomalyDetector, image: LoadedImage, name: str, grid: tuple[int, ...]) -> Map:
    """Resize the positive part of the attribution of a pooled scale to the (h, w) grid of the map."""
    device = next(detector.buffers()).device
    pixels, inspected = to_tensor(image).to(device), inspected_tensor([image], device)
    maps = feature_maps(detector.backbone, pixels, reduced_copies(pixels, (name,)))[name]
    shares = pooled_attribution(maps, detector.scale(name), inspected).clamp(min=0)
    resized = F.interpolate(shares[None, None], size=grid, mode="bilinear")[0, 0]
    if inspected is not None:
        resized = resized * inspected_cells(inspected, *resized.shape)[0]
    found: Map = resized.cpu().numpy()
    return found
