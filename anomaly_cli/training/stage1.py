"""The loop of stage 1: batches of views, learning rate, cached states."""

from __future__ import annotations

from copy import deepcopy
from functools import partial
from math import cos, log, pi
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from anomaly_cli.config import Effort
from anomaly_cli.detector.backbones.backbone import TURNS, Backbone
from anomaly_cli.detector.contrastive import Schedule, StageOne
from anomaly_cli.detector.features import turned_embedding
from anomaly_cli.detector.scales import TURNED_SIDE
from anomaly_cli.errors import UnreadableImageError
from anomaly_cli.scoring.parallel import parallel_map
from anomaly_cli.scoring.pixels import pixels_to_tensor
from anomaly_cli.training.augmentation import random_view
from anomaly_cli.training.distributed import Processes, share_statistics
from anomaly_cli.training.run import TrainingContext

LEARNING_RATE = 2e-3
WEIGHT_DECAY = 5e-4
WARM_UP = 100  # steps
BATCH_SIZE = 16  # images, of all processes together; eight views each
AVERAGING = 0.995  # share of the earlier weights that a step leaves in the average
STEPS_BETWEEN_SAVES = 200  # half a minute on a CPU
PHASE = "learning features (stage 1)"
SAVED = "stage-1"  # name of the cached step


def learn_backbone(
    backbone: Backbone, images: list[np.ndarray], normal: Tensor, schedule: Schedule, run: TrainingContext
) -> None:
    """Train the whole backbone in place with stage 1, and prototypes of every scale with it.

    The backbone ends with the moving average of its weights. The random numbers of a step depend on the seed and the
    number of the step only, so that a resumed run, and several processes, draw what one uninterrupted process draws.

    Args:
        backbone: with its starting weights; left in eval mode.
        images: (h, w, 3) uint8 at network size.
        normal: (N,) bool, false for labelled anomalies.
        schedule: number of steps.
        run: seed, processes and cached steps.
    """
    device = next(backbone.parameters()).device
    learner = StageOne(backbone, schedule, run.config.seed, run.processes.all_gather_rows)
    share_statistics(backbone, run.processes)
    averaged = deepcopy(backbone)
    optimiser = torch.optim.AdamW(learner.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    rate = torch.optim.lr_scheduler.LambdaLR(optimiser, partial(_rate, steps=schedule.steps))
    parts: dict[str, Any] = {"learner": learner, "averaged": averaged, "optimiser": optimiser, "rate": rate}
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
        rate.step()
        _move_average(averaged, backbone, step)
        if run.processes.is_first and ((step + 1) % STEPS_BETWEEN_SAVES == 0 or step + 1 == schedule.steps):
            run.saved.save(SAVED, {"steps": step + 1, **{name: part.state_dict() for name, part in parts.items()}})
        run.progress(PHASE, step + 1, schedule.steps)
    backbone.load_state_dict(averaged.state_dict())
    backbone.eval()


def _rate(step: int, steps: int) -> float:
    """Share of the learning rate: it rises over the first steps, then falls along a cosine."""
    return min(1.0, (step + 1) / WARM_UP) * (1 + cos(pi * step / steps)) / 2


@torch.no_grad()
def _move_average(averaged: Backbone, backbone: Backbone, step: int) -> None:
    """Move the average of weights and statistics towards their present values, faster in the first steps."""
    share = min(AVERAGING, (step + 1) / (step + 10))
    for mean, value in zip(averaged.state_dict().values(), backbone.state_dict().values(), strict=True):
        if mean.is_floating_point():
            mean.lerp_(value, 1 - share)


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
        (2n, 3, crop, crop) views in [0, 1] of n images: one of each, then another of each. And (N,) indices of the
        images of the whole batch.
    """
    n = -(-BATCH_SIZE // processes.count)
    chosen = np.random.default_rng(seed).integers(len(images), size=n * processes.count)
    places = range(n * processes.rank, n * (processes.rank + 1))
    generators = [np.random.default_rng((*seed, 1 + i)) for i in places]
    pairs = [
        [random_view(images[chosen[i]], crop, draw) for _ in range(2)]
        for i, draw in zip(places, generators, strict=True)
    ]
    views = torch.from_numpy(np.stack([view for kind in zip(*pairs, strict=True) for view in kind]))
    return views.permute(0, 3, 1, 2).float().div_(255), torch.from_numpy(chosen)


SCRATCH_PIXELS = 2**28  # of the normal images that are kept in memory while stage 1 trains `scratch`: 0.8 GB
SCRATCH_STEPS = {Effort.QUICK: 300, Effort.STANDARD: 2_000, Effort.THOROUGH: 15_000}
UNSEEN_SHARE = 10  # one of so many normal images is left out of stage 1, to measure what it learned
MIN_LEARNED = 50  # normal images, below which none is left out


def learn_from_scratch(backbone: Backbone, paths: list[Path], anomalies: list[Path], run: TrainingContext) -> None:
    """Train the random backbone with stage 1 on the normal images and the labelled anomalies."""
    limit = SCRATCH_PIXELS // run.config.image_size**2
    chosen = [*paths[:: max(1, -(-len(paths) // limit))], *anomalies[:limit]]
    anomalous = {*anomalies}

    def load(path: Path) -> NDArray[np.uint8] | None:
        try:
            return run.load(path, tiled=False).pixels
        except UnreadableImageError:
            return None  # named by `sample_cells`, which reads every image

    loaded = [(path, pixels) for path, pixels in zip(chosen, parallel_map(load, chosen, run.workers), strict=True)]
    normal = [pixels for path, pixels in loaded if pixels is not None and path not in anomalous]
    odd = [pixels for path, pixels in loaded if pixels is not None and path in anomalous]
    if normal:  # where there are none, `sample_cells` raises the error
        unseen = normal[::UNSEEN_SHARE] if len(normal) >= MIN_LEARNED else normal
        learned = [pixels for i, pixels in enumerate(normal) if len(normal) < MIN_LEARNED or i % UNSEEN_SHARE]
        labels = torch.arange(len(learned) + len(odd)) < len(learned)
        learn_backbone(backbone, learned + odd, labels, Schedule(SCRATCH_STEPS[run.config.effort], TURNED_SIDE), run)
        backbone.turn_information.fill_(turn_information(backbone, unseen, run))
    backbone.prepare_for_inference()


@torch.inference_mode()
def turn_information(backbone: Backbone, images: list[NDArray[np.uint8]], run: TrainingContext) -> float:
    """Measure the share of the uncertainty about the turn that the turn head removes in (h, w, 3) images."""
    squares = [turned_embedding(backbone, pixels_to_tensor(pixels, run.device)).square() for pixels in images]
    return 1 - min(1.0, float(torch.cat(squares).mean()) / log(TURNS))
