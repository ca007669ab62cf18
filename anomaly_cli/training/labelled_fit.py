"""Labelled anomalies: compute descriptors, and fit a classifier against held-out normal images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from anomaly_cli.detector.anomaly_detector import AnomalyDetector
from anomaly_cli.detector.labelled_anomalies import LabelledAnomalyClassifier, fit_labelled
from anomaly_cli.errors import UnreadableImageError
from anomaly_cli.scoring.pixels import inspected_tensor, to_tensor
from anomaly_cli.training.cross_fitting import CrossFit, HeldOutImage, load_held_out
from anomaly_cli.training.run import TrainingContext


@dataclass(frozen=True)
class LabelledDescriptors:
    """Descriptors of labelled anomalies.

    Attributes:
        values: (A, D) of the readable ones; None where there are none.
        unreadable: path and reason of the others.
    """

    values: Tensor | None
    unreadable: list[tuple[Path, str]]

    @property
    def count(self) -> int:
        """Number of readable labelled anomalies."""
        return 0 if self.values is None else len(self.values)


def describe_anomalies(detector: AnomalyDetector, anomalies: list[Path], run: TrainingContext) -> LabelledDescriptors:
    """Compute the descriptors of labelled anomalies."""

    def describe(path: Path) -> dict[str, Any]:
        try:
            image = run.load(path)
        except UnreadableImageError as error:
            return {"unreadable": error.reason}
        described = detector.descriptors(to_tensor(image).to(run.device), inspected_tensor([image], run.device))
        return {"descriptor": described.cpu()}

    results = list(run.map_images("anomalies", "describing labelled anomalies", describe, anomalies))
    values = [each["descriptor"] for each in results if "descriptor" in each]
    failed = zip(anomalies, results, strict=True)
    return LabelledDescriptors(
        torch.cat(values).to(run.device) if values else None,
        [(path, each["unreadable"]) for path, each in failed if "unreadable" in each],
    )


def fit_labelled_classifier(
    fitted: CrossFit,
    anomalous: Tensor | None,
    run: TrainingContext,
    *,
    before: LabelledAnomalyClassifier | None = None,
) -> Tensor:
    """Fit the classifier of every detector, against normal images that are in none of its memories.

    Args:
        fitted: sets `known_anomalies` of each of its detectors; outliers are left out of the fits.
        anomalous: (A, D) descriptors of the labelled anomalies; None where there are none.
        run: settings and machine.
        before: an earlier classifier, whose descriptors are kept.

    Returns:
        (images, 1) odds of the held-out images, each by the detector of its fold, on the CPU; (images, 0) without
        labelled anomalies.
    """
    if anomalous is None and before is None:
        return torch.zeros(len(fitted.held_out), 0)

    def describe(item: HeldOutImage) -> Tensor:
        return fitted.detectors[item.fold + 1].descriptors(*load_held_out(item, run)).cpu()

    described = run.map_images("known", "describing held-out normal images", describe, fitted.held_out)
    seen = torch.cat(list(described)).to(run.device)
    folds = torch.tensor([item.fold for item in fitted.held_out])
    inlying = torch.ones(len(fitted.held_out), dtype=torch.bool)
    inlying[fitted.outliers] = False
    classifiers, odds = cross_fit(seen, folds, inlying, len(fitted.detectors) - 1, partial(_fit, before, anomalous))
    for detector, classifier in zip(fitted.detectors, classifiers, strict=True):
        detector.known_anomalies = classifier
    return odds


def cross_fit(
    seen: Tensor, folds: Tensor, inlying: Tensor, count: int, fit: Callable[[Tensor], LabelledAnomalyClassifier]
) -> tuple[list[LabelledAnomalyClassifier], Tensor]:
    """Fit a classifier on all held-out images and one without each fold, and measure each image by that of its fold.

    Args:
        seen: (images, D) descriptors of held-out normal images.
        folds: (images,) their folds.
        inlying: (images,) bool, those to fit on.
        count: number of folds.
        fit: makes a classifier from the descriptors of normal images.

    Returns:
        The classifiers, that of all images first, and (images, 1) odds on the CPU.
    """
    odds = torch.zeros(len(seen), 1)
    classifiers = []
    for fold in range(-1, count):
        classifiers.append(fit(seen[inlying & (folds != fold)]))
        odds[folds == fold] = classifiers[-1](seen[folds == fold]).cpu()
    return classifiers, odds


def _fit(
    before: LabelledAnomalyClassifier | None, anomalous: Tensor | None, normal: Tensor
) -> LabelledAnomalyClassifier:
    if before is None:
        return fit_labelled(normal, cast(Tensor, anomalous))
    if anomalous is None:
        return before
    return fit_labelled(torch.cat([before.normal, normal]), torch.cat([before.looks, anomalous]))
