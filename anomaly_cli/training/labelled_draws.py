"""How often stage 1 draws labelled anomalies: none before the network can judge them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anomaly_cli.detector.backbones.backbone import Backbone
from anomaly_cli.detector.features import learned_embedding, reduced, turned_means
from anomaly_cli.detector.labelled_anomalies import ENOUGH_TO_CHECK, cross_validated_separation, distinct_share
from anomaly_cli.detector.scales import TURNED_SIDE
from anomaly_cli.scoring.pixels import pixels_to_tensor
from anomaly_cli.training.run import TrainingContext
from anomaly_cli.training.step_cache import SavedState

JUDGED_AFTER = 0.3  # of the schedule; at 0.2 twelve anomalies of several types are not yet told from normal images
MAX_REPEATS = 5  # times as often as a normal image a labelled anomaly is drawn, at most
NORMAL_PER_LABELLED = 3  # normal images drawn for one labelled anomaly, about, at least


@dataclass
class LabelledDraws(SavedState):
    """How often a labelled anomaly is drawn.

    A network that has learned from labelled anomalies tells them from images that it has not seen, whatever they show.
    So they are judged before that, by what has been learned from normal images.

    Attributes:
        repeats: times as often as a normal image; None before they are judged, 0 where they are not learned from.
    """

    repeats: int | None = None

    def judge(
        self,
        backbone: Backbone,
        labelled: list[NDArray[np.uint8]],
        unseen: list[NDArray[np.uint8]],
        normal: int,
        run: TrainingContext,
    ) -> None:
        """Set `repeats`: more where anomalies are few, none where they cannot be told from unseen normal images.

        Args:
            backbone: that has learned from normal images alone.
            labelled: (h, w, 3) anomalies; fewer than `ENOUGH_TO_CHECK` are not learned from.
            unseen: (h, w, 3) normal images that it has not learned from; as above.
            normal: number of the images that it has learned from, at least 1.
            run: device and processes.
        """
        self.repeats = 0
        if min(len(labelled), len(unseen)) >= ENOUGH_TO_CHECK:
            separation = cross_validated_separation(*(_embed(backbone, images, run) for images in (unseen, labelled)))
            share = distinct_share(run.processes.broadcast(separation))
            self.repeats = round(share * labelled_repeats(normal, len(labelled)))


def labelled_repeats(normal: int, labelled: int) -> int:
    """Choose how many times as often as a normal image a labelled anomaly is drawn, from 1 to `MAX_REPEATS`.

    Drawn like normal images, a few anomalies are missing from most batches. At most about a quarter of what is drawn
    is anomalous, so that the turns are learned.

    Args:
        normal: images, at least 1.
        labelled: anomalies, at least 1.
    """
    return min(max(-(-normal // (NORMAL_PER_LABELLED * labelled)), 1), MAX_REPEATS)


def copies_to_turn(images: list[NDArray[np.uint8]], run: TrainingContext) -> Iterator[Tensor]:
    """Make the reduced copies, (1, 3, h', w'), of (h, w, 3) images that `turned_means` takes."""
    return (reduced(pixels_to_tensor(pixels, run.device), TURNED_SIDE) for pixels in images)


@torch.inference_mode()
def _embed(backbone: Backbone, images: list[NDArray[np.uint8]], run: TrainingContext) -> Tensor:
    """Compute the learned embedding of (h, w, 3) images: (N, D)."""
    means = (turned_means(backbone, copy) for copy in copies_to_turn(images, run))
    return torch.cat([learned_embedding(each).flatten(1) for each in means])
