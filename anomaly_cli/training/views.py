"""Turned and mirrored copies of few normal images, as further normal cells where turning does not show.

Memories of few images have gaps. A copy fills some of them, but only where a turned image is as normal as an upright
one: a screw on a belt, not a traffic light. Held-out images decide this for each view.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anomaly_cli.config import DetectorConfig
from anomaly_cli.detector.anomaly_distance import deviations_of, sensitivities
from anomaly_cli.detector.backbones.backbone import Backbone
from anomaly_cli.detector.features import scale_features
from anomaly_cli.detector.scales import COARSE_SCALE, WHOLE_SCALES
from anomaly_cli.scoring.pixels import inspected_tensor, to_tensor
from anomaly_cli.training.cell_samples import CANDIDATE_CELLS, Cells, Sample, random_cells
from anomaly_cli.training.cross_fitting import CrossFit, HeldOutImage, load_again, load_held_out
from anomaly_cli.training.run import TrainingContext

FEW_NORMALS = 64  # with more, memories have few gaps and copies cost more time
JUDGED_IMAGES = 24  # at most so many held-out images are turned to judge the views
# Mean increase of a log deviation by which a view still counts as normal, in standard deviations of normal images.
# Screws lying at random are between 0.5 and 2.4, things with an upper side between 2 and 10 when turned by quarters.
LARGEST_SHIFT = 2.0
MIN_MAP_SENSITIVITY = 0.25  # to synthetic defects; below, as on photographs, an unknown cell is no defect


@dataclass(frozen=True)
class View:
    """A symmetry of the square: mirrored or not, then turned by quarters anticlockwise."""

    mirrored: bool
    quarters: int

    def apply(self, maps: Tensor) -> Tensor:
        """Turn (…, H, W) maps: (…, H, W), or (…, W, H) after an odd number of quarters."""
        turned = maps.flip(-1) if self.mirrored else maps
        return torch.rot90(turned, self.quarters, (-2, -1)).contiguous()

    def upright(self, rows: int, columns: int) -> Tensor:
        """Find where each cell of a turned map lies upright: (rows · columns,) indices, row-major in both."""
        shape = (columns, rows) if self.quarters % 2 else (rows, columns)
        return self.apply(torch.arange(rows * columns).view(shape)).flatten()


VIEWS = tuple(View(mirrored, quarters) for mirrored in (False, True) for quarters in range(4))[1:]  # all but upright


def may_turn(normal_images: int, map_sensitivity: float, config: DetectorConfig) -> bool:
    """Whether copies are tried: not with tiles, of which there are many, nor for photographs."""
    few = normal_images <= FEW_NORMALS and config.smallest_defect is None
    return few and map_sensitivity >= MIN_MAP_SENSITIVITY


def harmless_views(fitted: CrossFit, run: TrainingContext) -> list[View]:
    """Choose the views in which held-out normal images deviate about as little as upright.

    Each held-out image is measured in each view by the detector of its fold. A view is harmless if no component of the
    score grows by more than `LARGEST_SHIFT` in the mean.
    """
    chosen = fitted.inliers[:: -(-len(fitted.inliers) // JUDGED_IMAGES)]

    def measure(item: HeldOutImage) -> list[list[Tensor]]:
        detector = fitted.detectors[item.fold + 1]
        image, inspected = load_held_out(item, run)
        maps = []
        for view in VIEWS:
            turned = None if inspected is None else view.apply(inspected)
            maps.append([each.cpu() for each in detector.distance_maps(view.apply(image), turned)])
        return maps

    turned = list(run.map_images("turned", "turning held-out images", measure, [fitted.held_out[i] for i in chosen]))
    names = fitted.final.deviation_names
    components = [i for i, name in enumerate(names) if name in ("map", COARSE_SCALE, *WHOLE_SCALES)]
    upright = np.log(deviations_of(fitted.final, fitted.measured)[:, components])
    logs = (np.log(deviations_of(fitted.final, maps)[:, components]) for maps in zip(*turned, strict=True))
    shifts = [sensitivities(upright, each, fitted.inliers, chosen).max() for each in logs]
    harmless = [i for i, shift in enumerate(shifts) if shift <= LARGEST_SHIFT]
    return [VIEWS[i] for i in run.processes.broadcast(harmless)]


def add_views(
    cells: dict[str, Cells], views: list[View], paths: list[Path], backbone: Backbone, run: TrainingContext
) -> dict[str, Cells]:
    """Add random cells of the views of each image, as many of each view as keep all within `CANDIDATE_CELLS`.

    Args:
        cells: of the upright images, by scale; images without cells get no views.
        views: of each image.
        paths: of the images that `Cells.sources` counts.
        backbone: of the detector.
        run: settings and machine.

    Returns:
        The cells by scale: those of a view belong to its image, and to the place where they lie in it upright.
    """
    names = tuple(cells)
    numbers = cells[names[0]].sources.unique().tolist()
    count = max(1, CANDIDATE_CELLS // (len(numbers) * len(views)))

    def sample(number: int) -> dict[str, Any]:
        image = load_again(paths[number], run)
        pixels, inspected = to_tensor(image).to(run.device), inspected_tensor([image], run.device)
        taken: dict[str, list[Sample]] = {name: [] for name in names}
        for i, view in enumerate(views):
            seed = (run.config.seed * 1_000_003 + number * len(VIEWS) + i) % 2**63
            turned = None if inspected is None else view.apply(inspected)
            with torch.inference_mode():
                features = scale_features(backbone, view.apply(pixels), names, inspected=turned)
            for name in names:
                values, places = random_cells(features[name], count, seed, turned)
                taken[name].append(Sample(values, view.upright(*features[name].shape[2:])[places]))
        return {name: [torch.cat(each) for each in zip(*taken[name], strict=True)] for name in names}

    results = list(run.map_images("views", "reading turned normal images", sample, numbers))
    return {
        name: own.joined(Cells.of({i: Sample(*each[name]) for i, each in zip(numbers, results, strict=True)}))
        for name, own in cells.items()
    }
