"""Cross-fitting: measure every normal image by the detector of its fold, which has not seen it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anomaly_cli.detector.anomaly_detector import AnomalyDetector, ScaleModel
from anomaly_cli.detector.anomaly_distance import set_cell_means
from anomaly_cli.detector.backbones.backbone import Backbone
from anomaly_cli.detector.memory import PrototypeMemory
from anomaly_cli.detector.scales import LEARNED_SCALE, POOLED_SCALES, TURNED_SCALE
from anomaly_cli.detector.whitening import SHRINKAGE, Whitening
from anomaly_cli.errors import InputError, UnreadableImageError
from anomaly_cli.images.decode import LoadedImage
from anomaly_cli.images.roi import inspected_part
from anomaly_cli.scoring.parallel import parallel_map
from anomaly_cli.scoring.pixels import inspected_tensor, to_tensor
from anomaly_cli.scoring.tiled import tiled_distance_maps
from anomaly_cli.training.augmentation import synthetic_defect_of
from anomaly_cli.training.cell_samples import Cells
from anomaly_cli.training.run import TrainingContext


@dataclass(frozen=True)
class HeldOutImage:
    """An image to be measured by the detector of the fold that has not seen it."""

    fold: int
    path: Path
    defect_seed: int | None = None  # seed of a synthetic defect to be put in first
    other: Path | None = None  # normal image that the defect may be cut from


@dataclass(frozen=True)
class CrossFit:
    """Detectors fitted on all images and without each fold, and what they measure on held-out images.

    Attributes:
        detectors: the final one, fitted on all images, then one for each fold.
        held_out: normal images.
        measured: of each held-out image one distance map of each scale, by the detector of its fold.
        outliers: indices of held-out images that may not be normal.
    """

    detectors: list[AnomalyDetector]
    held_out: list[HeldOutImage]
    measured: list[list[Tensor]]
    outliers: list[int] = field(default_factory=list)

    @property
    def final(self) -> AnomalyDetector:
        """The detector that is fitted on all images."""
        return self.detectors[0]

    @property
    def inliers(self) -> list[int]:
        """Indices of the other held-out images."""
        excluded = set(self.outliers)
        return [i for i in range(len(self.held_out)) if i not in excluded]


def load_held_out(item: HeldOutImage, run: TrainingContext) -> tuple[Tensor, Tensor | None]:
    """Read one image, with a synthetic defect if it has a seed of one.

    Returns:
        (1, 3, h, w) in [0, 1], and its (1, h, w) bool region of interest, if it has one.
    """
    image = load_again(item.path, run)
    if item.defect_seed is not None and item.other is not None:
        other = load_again(item.other, run)
        image = replace(
            image, pixels=synthetic_defect_of(image, inspected_part(other), np.random.default_rng(item.defect_seed))
        )
    return to_tensor(image).to(run.device), inspected_tensor([image], run.device)


def load_again(path: Path, run: TrainingContext, *, tiled: bool = True) -> LoadedImage:
    """Read an image that was readable before, as `TrainingContext.load`.

    Raises:
        InputError: it was changed or removed since.
    """
    try:
        return run.load(path, tiled=tiled)
    except UnreadableImageError as error:
        raise InputError(f"{path} was changed or removed during training: {error.reason}") from error


def measure_held_out(
    detectors: list[AnomalyDetector],
    held_out: list[HeldOutImage],
    run: TrainingContext,
    step: str = "held-out",
    phase: str = "calibrating on held-out normal images",
) -> list[list[Tensor]]:
    """Measure images, each by the detector of its fold (entry fold + 1): their distance maps, on the CPU.

    `step` and `phase` as in `TrainingContext.map_images`.
    """

    def measure(item: HeldOutImage) -> list[Tensor]:
        detector = detectors[item.fold + 1]
        if detector.tiled:
            return tiled_distance_maps(detector, load_again(item.path, run), run.workers)
        return [m.cpu() for m in detector.distance_maps(*load_held_out(item, run))]

    return list(run.map_images(step, phase, measure, held_out))


LOCAL_FLOOR = 0.1  # of the whitening of local scales (docs/method.md)
FOLDS = 5
FEW_IMAGES = 50  # below this number a fifth is too much to leave out
FOLDS_OF_FEW = 10


def fit_fold_detectors(
    cells: dict[str, Cells],
    folds: Tensor,
    backbone: Backbone,
    held_out: list[HeldOutImage],
    run: TrainingContext,
    step: str,
) -> CrossFit:
    """Fit a detector on all cells and one without each fold; measure every held-out image by that of its fold."""
    learned = learn_scales(cells, folds, run)
    tiled = run.config.smallest_defect is not None
    detectors = [AnomalyDetector(backbone, scales, tiled=tiled).to(run.device).eval() for scales in learned]
    measured = measure_held_out(detectors, held_out, run, step)
    set_cell_means(detectors, measured, run.config.seed)
    return CrossFit(detectors, held_out, measured)


def assign_folds(count: int, seed: int, groups: NDArray[np.int64] | None = None) -> Tensor:
    """Assign each of `count` images a fold; few images get more folds.

    Args:
        count: of images.
        seed: of the order.
        groups: (count,) near-duplicates have the same number > 0 and get the same fold, since a copy in the memory
            would make the other too near; 0 is no group.
    """
    folds = FOLDS if count >= FEW_IMAGES else min(count, FOLDS_OF_FEW)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    together: dict[tuple[bool, int], list[int]] = {}
    for image in order:
        group = 0 if groups is None else int(groups[image])
        together.setdefault((True, group) if group else (False, image), []).append(image)
    fold = torch.empty(count, dtype=torch.int64)
    filled = [0] * min(folds, len(together))
    for images in sorted(together.values(), key=len, reverse=True):
        emptiest = filled.index(min(filled))
        fold[images] = emptiest
        filled[emptiest] += len(images)
    return fold


def learn_scales(cells: dict[str, Cells], folds: Tensor, run: TrainingContext) -> list[dict[str, ScaleModel]]:
    """Fit every scale on all images (entry 0) and without each fold (entry fold + 1)."""
    excluded = [None, *range(int(folds.max()) + 1)]
    jobs = [(fold, name) for fold in excluded for name in cells]

    def learn(job: tuple[int | None, str]) -> ScaleModel:
        fold, name = job
        kept = torch.ones(len(folds), dtype=torch.bool) if fold is None else folds != fold
        # As many prototypes of fewer images would cover typical cells more densely than those of the final detector,
        # and held-out images would be nearer than new ones (docs/statistics.md).
        count = round(run.config.prototypes * float(kept.float().mean()) ** 0.5)
        values = cells[name].values[kept[cells[name].sources]].to(run.device)
        if name == TURNED_SCALE:
            scale = ScaleModel(unwhitened(values))
            scale.memory = surest_memory(values)
            return scale.cpu()
        if name == LEARNED_SCALE:
            return learn_scale(values, count, unwhitened(values), run).cpu()
        floor = SHRINKAGE if name in POOLED_SCALES else LOCAL_FLOOR
        return learn_scale(values, count, Whitening.fit(values, floor), run).cpu()

    # Torch loads the linear algebra of a GPU at its first use, which fails in several threads (pytorch issue 90613).
    torch.linalg.eigh(torch.eye(1, device=run.device))
    own = run.processes.share(jobs)
    scales: list[ScaleModel] = []
    for scale in parallel_map(learn, own, run.workers):
        scales.append(scale)
        run.progress("choosing prototypes", len(scales), len(own))
    learned: list[dict[str, ScaleModel]] = [{} for _ in excluded]
    for (fold, name), scale in zip(jobs, run.processes.join(scales), strict=True):
        learned[0 if fold is None else fold + 1][name] = scale
    return learned


def learn_scale(cells: Tensor, count: int, whitening: Whitening, run: TrainingContext) -> ScaleModel:
    """Fit the memory of one scale on (M, D) normal cells: `count` of them, as the whitening leaves them.

    The prototypes are a coreset, so each is a real normal cell.
    """
    scale = ScaleModel(whitening).to(cells.device)
    embeddings = scale.whitening(cells)
    scale.memory = PrototypeMemory.choose(embeddings, count, torch.Generator().manual_seed(run.config.seed))
    return scale


def unwhitened(cells: Tensor) -> Whitening:
    """Leave (M, D) cells as they are.

    Whitening enlarges what varies little among normal images. Stage 1 learned which directions matter, and of few
    images of one class the others are noise (docs/method.md).
    """
    return Whitening(torch.zeros_like(cells[0]), torch.eye(cells.shape[1], device=cells.device))


def surest_memory(cells: Tensor) -> PrototypeMemory:
    """Keep the surest of (M, 4) normal cells of turned copies: the distance from it grows with what is unsure."""
    chosen = cells.square().sum(dim=1).argmin()[None]
    return PrototypeMemory(cells[chosen], chosen.cpu())
