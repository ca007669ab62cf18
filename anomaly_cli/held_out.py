"""Measure images by detectors that have not seen them: normal images, each by the detector of its fold."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from anomaly_cli.augment import planted_defect
from anomaly_cli.detector import AnomalyDetector
from anomaly_cli.errors import InputError, UnreadableImageError
from anomaly_cli.images import LoadedImage, load_image
from anomaly_cli.normals import Run
from anomaly_cli.scoring import to_tensor


@dataclass(frozen=True)
class HeldOut:
    """An image to be measured by the detector of the fold that has not seen it."""

    fold: int
    path: Path
    defect_seed: int | None = None  # plant a defect with this seed first
    other: Path | None = None  # normal image that the defect may be cut from


def load_held_out(item: HeldOut, run: Run) -> Tensor:
    """Read one image, with a planted defect where one is wanted: (1, 3, h, w)."""
    image = load_again(item.path, run)
    if item.defect_seed is not None and item.other is not None:
        other = load_again(item.other, run)
        changed = planted_defect(image.pixels, other.pixels, np.random.default_rng(item.defect_seed))
        image = LoadedImage(changed, image.height, image.width)
    return to_tensor(image).to(run.device)


def load_again(path: Path, run: Run) -> LoadedImage:
    """Read an image that could be read before.

    Raises:
        InputError: it was changed or removed since.
    """
    try:
        return load_image(path, run.config.image_size)
    except UnreadableImageError as error:
        raise InputError(f"{path} was changed or removed during training: {error.reason}") from error


def measure_held_out(
    detectors: list[AnomalyDetector],
    held_out: list[HeldOut],
    run: Run,
    step: str = "held-out",
    phase: str = "calibrating on held-out normal images",
) -> list[list[Tensor]]:
    """Measure images, each by the detector of its fold (entry fold + 1): their distance maps, on the CPU.

    `step` is the name under which they are saved, `phase` what the progress says.
    """

    def measure(item: HeldOut) -> list[Tensor]:
        return [m.cpu() for m in detectors[item.fold + 1].distance_maps(load_held_out(item, run))]

    return list(run.map_images(step, phase, measure, held_out))
