"""Learn from labelled anomalies: look at them and at held-out normal images, and fit what tells them apart."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from anomaly_cli.detector.anomaly_detector import AnomalyDetector
from anomaly_cli.detector.labelled_anomalies import LabelledAnomalyClassifier, fit_labelled
from anomaly_cli.errors import UnreadableImageError
from anomaly_cli.images.decode import load_image
from anomaly_cli.scoring.measure import to_tensor
from anomaly_cli.training.cross_fitting import HeldOutImage, load_held_out
from anomaly_cli.training.run import TrainingContext


@dataclass(frozen=True)
class LabelledDescriptors:
    """What is remembered of labelled anomalies.

    Attributes:
        looks: (A, D) of those that could be read; None where there are none.
        unreadable: path and reason of the others.
    """

    looks: Tensor | None
    unreadable: list[tuple[Path, str]]


def describe_anomalies(detector: AnomalyDetector, anomalies: list[Path], run: TrainingContext) -> LabelledDescriptors:
    """Take from labelled anomalies what is remembered of them."""

    def look(path: Path) -> dict[str, Any]:
        try:
            image = to_tensor(load_image(path, run.config.image_size)).to(run.device)
        except UnreadableImageError as error:
            return {"unreadable": error.reason}
        return {"look": detector.looks(image).cpu()}

    results = list(run.map_images("anomalies", "looking at the known anomalies", look, anomalies))
    looks = [each["look"] for each in results if "look" in each]
    failed = zip(anomalies, results, strict=True)
    return LabelledDescriptors(
        torch.cat(looks).to(run.device) if looks else None,
        [(path, each["unreadable"]) for path, each in failed if "unreadable" in each],
    )


def fit_labelled_classifier(
    detectors: list[AnomalyDetector],
    held_out: list[HeldOutImage],
    looks: Tensor | None,
    run: TrainingContext,
    *,
    outliers: list[int],
    before: LabelledAnomalyClassifier | None = None,
) -> Tensor:
    """Fit what labelled anomalies add, for every detector against normal images that none of its memories knows.

    Args:
        detectors: the one in use, then one a fold; each gets its `known_anomalies`.
        held_out: normal images.
        looks: (A, D) of the labelled anomalies; None where there are none.
        run: settings and machine.
        outliers: numbers of those held-out images that may be no normal ones, which no fit takes for normal.
        before: what was known before, which is kept.

    Returns:
        (images, 1) answers for the held-out images, each by the detector of its fold, on the CPU; (images, 0) where
        nothing is known.
    """
    if looks is None and before is None:
        return torch.zeros(len(held_out), 0)

    def look(item: HeldOutImage) -> Tensor:
        return detectors[item.fold + 1].looks(load_held_out(item, run)).cpu()

    seen = torch.cat(list(run.map_images("known", "looking for what is known", look, held_out))).to(run.device)
    folds = torch.tensor([item.fold for item in held_out])
    normal = torch.ones(len(held_out), dtype=torch.bool)
    normal[outliers] = False
    answers = torch.zeros(len(held_out), 1)
    for fold, detector in enumerate(detectors, start=-1):
        known = _fit(before, seen[normal & (folds != fold)], looks)
        detector.known_anomalies = known
        answers[folds == fold] = known(seen[folds == fold]).cpu()
    return answers


def _fit(before: LabelledAnomalyClassifier | None, normal: Tensor, looks: Tensor | None) -> LabelledAnomalyClassifier:
    if before is None:
        return fit_labelled(normal, cast(Tensor, looks))
    if looks is None:
        return before
    return fit_labelled(torch.cat([before.normal, normal]), torch.cat([before.looks, looks]))
