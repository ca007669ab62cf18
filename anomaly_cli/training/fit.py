"""Fit a detector to normal images: memories, weights and cross-fitted calibration."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anomaly_cli.config import MIN_NORMALS, DetectorConfig
from anomaly_cli.detector.anomaly_detector import AnomalyDetector
from anomaly_cli.detector.anomaly_distance import (
    DEFAULT_SENSITIVITIES,
    calibrate,
    component_weights,
    deviations_of,
    set_cell_means,
)
from anomaly_cli.detector.backbones.backbone import SCRATCH, Backbone
from anomaly_cli.detector.calibration import Calibration, ScoreScale
from anomaly_cli.detector.scales import (
    BLOCK,
    COARSE_SCALE,
    FINEST_STEP,
    IMAGE_SCALE,
    LEARNED_SCALE,
    SMALL_SCALE,
    TURNED_SCALE,
    has_small_scale,
)
from anomaly_cli.detector.tiles import picture_scale
from anomaly_cli.images.decode import read_size
from anomaly_cli.images.picture import picture_size
from anomaly_cli.training.cell_samples import Cells, Origin
from anomaly_cli.training.cross_fitting import CrossFit, HeldOutImage, assign_folds, fit_fold_detectors
from anomaly_cli.training.labelled_fit import LabelledDescriptors, describe_anomalies, fit_labelled_classifier
from anomaly_cli.training.run import TrainingContext
from anomaly_cli.training.stage1 import learn_from_scratch
from anomaly_cli.training.stage2 import fit_scale_weights
from anomaly_cli.training.training_set import NormalSet, sample_cells
from anomaly_cli.training.views import add_views, harmless_views, may_turn

LOCAL_STRIDES = (4, 8, 16)  # a coarser one adds nothing (docs/method.md)
CALIBRATION_IMAGES = 1_000  # at most so many normal images are held out
HELD_OUT_CELLS = 2**28  # in the maps of large ones: 1 GB
CELLS_A_PIXEL = 2.25 / FINEST_STEP**2  # of the local scales together
SIZED_IMAGES = 20  # whose mean size is taken for that of all


@dataclass(frozen=True)
class TrainedDetector:
    """A fitted detector with its calibration and what was found about its training images.

    Attributes:
        labelled: the labelled anomalies.
        fold_detectors: for each fold, one fitted on the others.
        folds: (images,) fold of each normal image.
        outliers: normal images that enter no memory.
        origins: of the prototypes of each scale.
    """

    detector: AnomalyDetector
    calibration: Calibration
    map_scale: ScoreScale
    normals: NormalSet
    labelled: LabelledDescriptors
    fold_detectors: list[AnomalyDetector]
    folds: Tensor
    outliers: list[Path]
    origins: dict[str, list[Origin]]


def train_detector(
    paths: list[Path], anomalies: list[Path], backbone: Backbone, run: TrainingContext, *, clean: bool = True
) -> TrainedDetector:
    """Fit a detector to normal images.

    Cross-fitting: each fold of the images is measured by a detector fitted on the other folds, and these held-out
    measurements set every unit. The final detector is fitted on all images.

    Args:
        paths: normal images.
        anomalies: labelled anomalous images; they enter stage 1 of `scratch` and the score, never a memory.
        backbone: with its starting weights; `scratch` is trained in place.
        run: settings and machine.
        clean: false leaves outliers out of the calibration, as they are of the memories.

    Raises:
        InputError: fewer than `MIN_NORMALS` images can be read.
    """
    backbone = backbone.to(run.device)
    names = _scale_names(backbone, run.config.image_size)
    new = learn_from_scratch(backbone, paths, anomalies, run) if backbone.name == SCRATCH else paths
    cells, normals = sample_cells(paths, backbone, names, run)
    folds = assign_folds(len(normals.paths), run.config.seed, normals.groups)
    numbers = _held_out_numbers(normals.paths, new, run.config)
    held_out = [HeldOutImage(int(folds[i]), normals.paths[i]) for i in numbers]
    fitted = fit_fold_detectors(cells, folds, backbone, held_out, run, "held-out")
    outliers = run.processes.broadcast(_find_outliers(fitted, normals.groups[numbers] > 0, run.config))
    if outliers:
        cells = {name: each.without(torch.tensor([numbers[i] for i in outliers])) for name, each in cells.items()}
        cleaned = fit_fold_detectors(cells, folds, backbone, held_out, run, "held-out-cleaned")
        fitted = replace(cleaned, outliers=outliers)
    cells, fitted, sensitivity = _turn_few(cells, fitted, normals.paths, folds, run)
    labelled = describe_anomalies(fitted.final, anomalies, run)
    odds = fit_labelled_classifier(fitted, labelled.values, run)
    if not clean:
        fitted, odds = _without_outliers(fitted, run.config.seed), odds[fitted.inliers]
    weights = component_weights(fitted.final, run.config.image_size, len(normals.paths), sensitivity)
    calibration, map_scale = calibrate(fitted.final, fitted.measured, weights, odds)
    return TrainedDetector(
        detector=fitted.final,
        calibration=calibration,
        map_scale=map_scale,
        normals=normals,
        labelled=labelled,
        fold_detectors=fitted.detectors[1:],
        folds=folds,
        outliers=[held_out[i].path for i in outliers],
        origins={name: each.origins(fitted.final.scale(name).memory.chosen) for name, each in cells.items()},
    )


def _turn_few(
    cells: dict[str, Cells], fitted: CrossFit, paths: list[Path], folds: Tensor, run: TrainingContext
) -> tuple[dict[str, Cells], CrossFit, tuple[float, float]]:
    """Run stage 2, and where few normal images may be turned, fit again with copies and run it again."""
    sensitivity = fit_scale_weights(fitted, run)
    views = harmless_views(fitted, run) if may_turn(len(paths), sensitivity[0], run.config) else []
    if not views:
        return cells, fitted, sensitivity
    backbone = fitted.final.backbone
    cells = add_views(cells, views, paths, backbone, run)
    again = fit_fold_detectors(cells, folds, backbone, fitted.held_out, run, "held-out-views")
    fitted = replace(again, outliers=fitted.outliers)
    return cells, fitted, fit_scale_weights(fitted, run, "planted-views")


def _held_out_numbers(paths: list[Path], new: list[Path], config: DetectorConfig) -> list[int]:
    """Choose the images that are measured, of those that are new to the backbone, if these are enough."""
    known = {*new}
    numbers = [i for i, path in enumerate(paths) if path in known]
    if len(numbers) < MIN_NORMALS:
        numbers = [*range(len(paths))]
    return numbers[:: -(-len(numbers) // calibration_images(paths, config))]


def calibration_images(paths: list[Path], config: DetectorConfig) -> int:
    """Limit the held-out images, so that the maps of large pictures fit in memory: of these readable files."""
    if config.smallest_defect is None:
        return CALIBRATION_IMAGES
    scale = picture_scale(config.smallest_defect)
    sides = [picture_size(*read_size(path), scale) for path in paths[:: -(-len(paths) // SIZED_IMAGES)]]
    cells = sum(rows * columns for rows, columns in sides) / len(sides) * CELLS_A_PIXEL
    return max(MIN_NORMALS, min(CALIBRATION_IMAGES, int(HELD_OUT_CELLS / cells)))


def _find_outliers(fitted: CrossFit, copies: NDArray[np.bool_], config: DetectorConfig) -> list[int]:
    """Find the indices of held-out images that no memory should learn from.

    A greedy coreset selects outliers first, so a few anomalies among the normal images cost much. Outliers stay in the
    calibration: without the most extreme normal images p-values would be too small. Near-copies are no outliers: a
    whole group is held out together, so that it is always far from all others.
    """
    weights = component_weights(fitted.final, config.image_size, len(copies), DEFAULT_SENSITIVITIES)
    calibration, _ = calibrate(fitted.final, fitted.measured, weights)
    outliers = np.flatnonzero(calibration.outliers(deviations_of(fitted.final, fitted.measured)) & ~copies)
    return [int(i) for i in outliers[: len(fitted.measured) - MIN_NORMALS]]


def _without_outliers(fitted: CrossFit, seed: int) -> CrossFit:
    """Leave the outliers out of the held-out images, and of the cell means of all detectors."""
    held_out, measured = [fitted.held_out[i] for i in fitted.inliers], [fitted.measured[i] for i in fitted.inliers]
    set_cell_means(fitted.detectors, measured, seed)
    return CrossFit(fitted.detectors, held_out, measured)


def local_scales(backbone: Backbone) -> tuple[str, ...]:
    """Name the local scales of a backbone, finest or shallowest first."""
    strides = backbone.stride_of
    local = [name for name, stride in strides.items() if name.startswith(BLOCK) or stride in LOCAL_STRIDES]
    return tuple(local or [*strides][-1:])


def _scale_names(backbone: Backbone, image_size: int) -> tuple[str, ...]:
    small = (SMALL_SCALE,) if has_small_scale(image_size) else ()
    turned = () if backbone.turn_head is None else (TURNED_SCALE, LEARNED_SCALE)
    return (*local_scales(backbone), IMAGE_SCALE, *small, *turned, COARSE_SCALE)
