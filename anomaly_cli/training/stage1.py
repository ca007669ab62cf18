"""The loop of stage 1: batches of views, learning rate, cached states."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from anomaly_cli.config import Effort
from anomaly_cli.detector.backbones.backbone import Backbone
from anomaly_cli.detector.contrastive import Schedule, StageOne
from anomaly_cli.errors import UnreadableImageError
from anomaly_cli.scoring.parallel import parallel_map
from anomaly_cli.training.augmentation import random_view
from anomaly_cli.training.distributed import Processes, share_statistics
from anomaly_cli.training.run import TrainingContext

LEARNING_RATE = 1e-3
BATCH_SIZE = 16  # images, of all processes together
STEPS_BETWEEN_SAVES = 50  # half a minute on a CPU; weights and optimiser make 64 MB, saved in 0.2 s
PHASE = "learning features (stage 1)"
SAVED = "stage-1"  # name of the cached step


def learn_backbone(
    backbone: Backbone,
    names: tuple[str, ...],
    images: list[np.ndarray],
    normal: Tensor,
    schedule: Schedule,
    run: TrainingContext,
) -> None:
    """Train the whole backbone in place with stage 1, and prototypes of every scale with it.

    The random numbers of a step depend on the seed and the number of the step only, so that a resumed run, and several
    processes, draw what one uninterrupted process draws.

    Args:
        backbone: with its starting weights; left in eval mode.
        names: of the scales in the loss.
        images: (h, w, 3) uint8 at network size.
        normal: (N,) bool, false for labelled anomalies.
        schedule: number of steps.
        run: seed, processes and cached steps.
    """
    device = next(backbone.parameters()).device
    learner = StageOne(backbone, names, schedule, run.config.seed, run.processes.all_gather_rows)
    share_statistics(backbone, run.processes)
    optimiser = torch.optim.AdamW(learner.parameters(), LEARNING_RATE, weight_decay=1e-4)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, schedule.steps)
    parts: dict[str, Any] = {"learner": learner, "optimiser": optimiser, "cosine": cosine}
    first = _load_training_state(parts, schedule, run)
    learner.train()
    several = run.processes.count > 1
    loss_of = DistributedDataParallel(learner) if several else learner
    for step in range(first, schedule.steps):
        views, chosen = draw_batch(images, schedule.crop, (run.config.seed, step), run.processes)
        loss = loss_of(views.to(device), normal[chosen].to(device))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        cosine.step()
        if run.processes.is_first and ((step + 1) % STEPS_BETWEEN_SAVES == 0 or step + 1 == schedule.steps):
            run.saved.save(SAVED, {"steps": step + 1, **{name: part.state_dict() for name, part in parts.items()}})
        run.progress(PHASE, step + 1, schedule.steps)
    backbone.eval()


def _load_training_state(parts: dict[str, Any], schedule: Schedule, run: TrainingContext) -> int:
    """Restore the state of an interrupted run; return the number of finished steps."""
    state = run.processes.broadcast(run.saved.load(SAVED) if run.processes.is_first else None)
    if state is None:
        return 0
    for name, part in parts.items():
        part.load_state_dict(state[name])
    run.saved.note_reuse(PHASE, state["steps"], schedule.steps)
    return int(state["steps"])


def draw_batch(
    images: list[np.ndarray], crop: int, seed: tuple[int, int], processes: Processes
) -> tuple[Tensor, Tensor]:
    """Draw the images of a step, and two views of each in this process's share.

    Args:
        images: (h, w, 3) uint8.
        crop: pixels, side of the views.
        seed: of the run, and the number of the step.
        processes: each of which gets the same number of images, `BATCH_SIZE` in all or as few more as that takes.

    Returns:
        (4n, 3, crop, crop) views in [0, 1] of n images: alternately of an image and of the image rotated, then the
        second views in the same order. And (N,) indices of the images of the whole batch.
    """
    n = -(-BATCH_SIZE // processes.count)
    chosen = np.random.default_rng(seed).integers(len(images), size=n * processes.count)
    places = range(n * processes.rank, n * (processes.rank + 1))
    drawn = [_views(images[chosen[i]], crop, np.random.default_rng((*seed, 1 + i))) for i in places]
    views = torch.from_numpy(np.stack([view for kind in zip(*drawn, strict=True) for pair in kind for view in pair]))
    return views.permute(0, 3, 1, 2).float().div_(255), torch.from_numpy(chosen)


def _views(image: np.ndarray, crop: int, draw: np.random.Generator) -> list[list[np.ndarray]]:
    """Make two pairs of views, of an image and of it rotated by 90°, 180° or 270°, the same in both pairs."""
    turns = int(draw.integers(1, 4))
    return [[np.rot90(random_view(image, crop, draw), k) for k in (0, turns)] for _ in range(2)]


SCRATCH_IMAGES = 1_000  # at most so many are kept in memory while stage 1 trains `scratch`
SCRATCH_STEPS = {Effort.QUICK: 60, Effort.STANDARD: 200, Effort.THOROUGH: 3_000}


def learn_from_scratch(
    backbone: Backbone, names: tuple[str, ...], paths: list[Path], anomalies: list[Path], run: TrainingContext
) -> None:
    """Train the random backbone with stage 1 on the normal images and the labelled anomalies."""
    chosen = [*paths[:: max(1, -(-len(paths) // SCRATCH_IMAGES))], *anomalies[:SCRATCH_IMAGES]]
    anomalous = {*anomalies}

    def load(path: Path) -> NDArray[np.uint8] | None:
        try:
            return run.load(path).pixels
        except UnreadableImageError:
            return None  # named by `sample_cells`, which reads every image

    loaded = [(path, pixels) for path, pixels in zip(chosen, parallel_map(load, chosen, run.workers), strict=True)]
    images = [pixels for _, pixels in loaded if pixels is not None]
    normal = torch.tensor([path not in anomalous for path, pixels in loaded if pixels is not None], dtype=torch.bool)
    if images:  # where there are none, `sample_cells` raises the error
        schedule = Schedule(SCRATCH_STEPS[run.config.effort], max(64, run.config.image_size // 2 // 32 * 32))
        learn_backbone(backbone, names, images, normal, schedule, run)
    backbone.prepare_for_inference()
