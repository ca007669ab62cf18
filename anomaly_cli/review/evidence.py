"""The most anomalous patch of an image and its nearest normal prototype; writes no file."""

from __future__ import annotations

from dataclasses import dataclass

from anomaly_cli.detector.checkpoint import Model
from anomaly_cli.detector.prototype_patches import cut_patch, encode_patch
from anomaly_cli.scoring.measure import Measured


@dataclass(frozen=True)
class Evidence:
    """Two patches of the same extent, as WebP.

    Attributes:
        anomalous: patch around the most anomalous cell of the image.
        normal: patch of the nearest prototype.
        scale: the local scale of highest score, whose cell it is.
    """

    anomalous: bytes
    normal: bytes
    scale: str


def find_evidence(model: Model, measured: Measured) -> Evidence | None:
    """Cut the most anomalous patch and look up its nearest prototype; None if the model has no thumbnails."""
    if not model.patches:
        return None
    detector = model.detector
    scores = model.calibration.scores(measured.deviations[None])[1][0]
    score_of = dict(zip(detector.deviation_names, scores.tolist(), strict=True))
    scale = max(detector.local_names, key=score_of.__getitem__)
    number = detector.local_names.index(scale)
    cell, prototype = measured.peak_cells[number].tolist()
    if measured.peak_pixels is None:
        patch = cut_patch(measured.pixels, detector.cell_step(scale, *measured.pixels.shape[:2]), cell)
    else:
        patch = encode_patch(measured.peak_pixels[number])
    return Evidence(patch, model.patches[scale][prototype], scale)
