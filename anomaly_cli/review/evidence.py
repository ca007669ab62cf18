"""What an image was compared with: the hottest patch of it beside the normal patch most like it; writes no file."""

from __future__ import annotations

from dataclasses import dataclass

from anomaly_cli.detector.checkpoint import Model
from anomaly_cli.detector.prototype_patches import cut_patch
from anomaly_cli.scoring.measure import Measured


@dataclass(frozen=True)
class Evidence:
    """Two pictures of the same extent, as WebP.

    Attributes:
        hot: surroundings of the hottest cell of the image.
        normal: surroundings of the prototype that is nearest to it.
        scale: whose cell it is: the local scale that fired most.
    """

    hot: bytes
    normal: bytes
    scale: str


def find_evidence(model: Model, measured: Measured) -> Evidence | None:
    """Find what an image was compared with where it is hottest; None where the model has no thumbnails."""
    if not model.patches:
        return None
    detector = model.detector
    each = model.calibration.scores(measured.deviations[None])[1][0]
    fired = dict(zip(detector.deviation_names, each.tolist(), strict=True))
    scale = max(detector.local_names, key=fired.__getitem__)
    cell, prototype = measured.peak_cells[detector.local_names.index(scale)].tolist()
    return Evidence(cut_patch(measured.pixels, scale, cell), model.patches[scale][prototype], scale)
