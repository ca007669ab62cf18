"""The loop of stage 1: batches of views, learning rate, cached states."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
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
from anomaly_cli.detector.features import turn_losses, turned_means
from anomaly_cli.detector.scales import TURNED_SIDE
from anomaly_cli.detector.turn_prediction import Schedule, StageOne
from anomaly_cli.errors import UnreadableImageError
from anomaly_cli.scoring.parallel import parallel_map
from anomaly_cli.training.augmentation import random_view
from anomaly_cli.training.distributed import Processes, share_statistics
from anomaly_cli.training.labelled_draws import JUDGED_AFTER, LabelledDraws, copies_to_turn
from anomaly_cli.training.run import TrainingContext
from anomaly_cli.training.step_cache import SavedState

LEARNING_RATE = 2e-3
WEIGHT_DECAY = 5e-4
WARM_UP = 100  # steps
BATCH_SIZE = 16  # images, of all processes together; eight views each
AVERAGING = 0.995  # share of the earlier weights that a step leaves in the average
STEPS_BETWEEN_SAVES = 200  # half a minute on a CPU
PATIENCE = 0.2  # of the schedule, after which training stops if nothing more is learned about unseen images
PHASE = "learning features (stage 1)"
SAVED = "stage-1"  # name of the cached step


@dataclass(frozen=True)
class StageOneImages:
    """What stage 1 sees: (h, w, 3) uint8 at network size.

    Attributes:
        normal: what it learns from.
        labelled: anomalies, drawn as `LabelledDraws` says.
        unseen: other normal images, which measure what is learned; where there are none, all steps are made.
    """

    normal: list[NDArray[np.uint8]]
    labelled: list[NDArray[np.uint8]]
    unseen: list[NDArray[np.uint8]]


@dataclass
class BestWeights(SavedState):
    """The weights with which most was known about the turns of unseen images so far.

    Attributes:
        information: `turn_information`.
        steps: that had been made.
        weights: state dictionary of the backbone; None before the first measurement.
    """

    information: float = -1.0
    steps: int = 0
    weights: dict[str, Tensor] | None = None


def learn_backbone(backbone: Backbone, images: StageOneImages, schedule: Schedule, run: TrainingContext) -> None:
    """Train the whole backbone in place with stage 1.

    Kept is the moving average of the weights, from the step after which most was known about unseen images; where
    labelled anomalies join, of the steps from there on. The random numbers of a step depend on the seed and the number
    of the step only, so that a resumed run, and several processes, draw what one uninterrupted process draws.

    Args:
        backbone: with its starting weights; left in eval mode.
        images: of the normal class, and labelled anomalies.
        schedule: number of steps.
        run: seed, processes and cached steps.
    """
    device = next(backbone.parameters()).device
    learner = StageOne(backbone, run.processes.all_gather_rows)
    share_statistics(backbone, run.processes)
    averaged, best, draws = deepcopy(backbone).eval(), BestWeights(), LabelledDraws()
    optimiser = torch.optim.AdamW(learner.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    rate = torch.optim.lr_scheduler.LambdaLR(optimiser, partial(_rate, steps=schedule.steps))
    parts: dict[str, Any] = {"learner": learner, "averaged": averaged, "best": best, "draws": draws}
    parts |= {"optimiser": optimiser, "rate": rate}
    step = _load_training_state(parts, schedule, run)
    learner.train()
    loss_of = DistributedDataParallel(learner) if run.processes.count > 1 else learner
    patience = max(PATIENCE * schedule.steps, 2 * STEPS_BETWEEN_SAVES)
    while step < schedule.steps and step - best.steps < patience:
        if draws.repeats is None and step >= JUDGED_AFTER * schedule.steps:
            _judge(draws, best, averaged, images, step, run)
        pool = images.normal + images.labelled * (draws.repeats or 0)
        views, chosen = draw_batch(pool, schedule.crop, (run.config.seed, step), run.processes)
        loss = loss_of(views.to(device), (chosen < len(images.normal)).to(device))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        rate.step()
        _move_average(averaged, backbone, step)
        step += 1
        if step % STEPS_BETWEEN_SAVES == 0 or step == schedule.steps:
            _compare(best, averaged, images.unseen, step, run)
            if run.processes.is_first:
                run.saved.save(SAVED, {"steps": step, **{name: part.state_dict() for name, part in parts.items()}})
        run.progress(PHASE, step, schedule.steps)
    backbone.load_state_dict(best.weights or averaged.state_dict())
    backbone.eval()


def _judge(
    draws: LabelledDraws,
    best: BestWeights,
    averaged: Backbone,
    images: StageOneImages,
    steps: int,
    run: TrainingContext,
) -> None:
    """Judge the labelled anomalies; where they are learned from, forget the weights of the steps without them."""
    draws.judge(averaged, images.labelled, images.unseen, len(images.normal), run)
    if draws.repeats:
        best.information, best.steps, best.weights = -1.0, steps, None


def _compare(best: BestWeights, averaged: Backbone, unseen: list[Any], steps: int, run: TrainingContext) -> None:
    """Keep the averaged weights if more is known with them than with the best; without unseen images, always."""
    information = run.processes.broadcast(turn_information(averaged, unseen, run)) if unseen else 0.0
    if information >= best.information:
        weights = {name: value.clone() for name, value in averaged.state_dict().items()}
        best.information, best.steps, best.weights = information, steps, weights


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
SCRATCH_STEPS = {Effort.QUICK: 300, Effort.STANDARD: 2_000, Effort.THOROUGH: 6_000}
SHARES = (4, 10)  # one of at least and at most so many normal images is left out of stage 1, to measure what it learned
UNSEEN = 100  # images that are left out, between these shares
MIN_LEARNED = 50  # normal images, below which none is left out


def learn_from_scratch(
    backbone: Backbone, paths: list[Path], anomalies: list[Path], run: TrainingContext
) -> list[Path]:
    """Train the random backbone with stage 1 on the normal images and the labelled anomalies.

    Returns:
        The normal images to calibrate on: those that stage 1 has not seen, since its features fit the others better
        than any new image. All of them where there are too few to leave any out.
    """
    limit = SCRATCH_PIXELS // run.config.image_size**2
    share = min(max(SHARES[0], len(paths) // UNSEEN), SHARES[1])
    left_out = paths[::share] if len(paths) >= MIN_LEARNED else []
    learned = sorted({*paths}.difference(left_out))
    learned = learned[:: max(1, -(-len(learned) // limit))]
    anomalies = anomalies[:limit]

    def load(path: Path) -> NDArray[np.uint8] | None:
        try:
            return run.load(path, tiled=False).pixels
        except UnreadableImageError:
            return None  # named by `sample_cells`, which reads every image

    def load_all(chosen: list[Path]) -> list[NDArray[np.uint8]]:
        return [pixels for pixels in parallel_map(load, chosen, run.workers) if pixels is not None]

    normal, labelled, unseen = (
        load_all(chosen) for chosen in (learned, anomalies, left_out[:: max(1, len(left_out) // UNSEEN)])
    )
    if normal:  # where there are none, `sample_cells` raises the error
        images = StageOneImages(normal, labelled, unseen)
        learn_backbone(backbone, images, Schedule(SCRATCH_STEPS[run.config.effort], TURNED_SIDE), run)
        backbone.turn_information.fill_(turn_information(backbone, unseen or normal, run))
    backbone.prepare_for_inference()
    return sorted({*paths}.difference(learned)) or paths


@torch.inference_mode()
def turn_information(backbone: Backbone, images: list[NDArray[np.uint8]], run: TrainingContext) -> float:
    """Measure the share of the uncertainty about the turn that the turn head removes in (h, w, 3) images."""
    copies = copies_to_turn(images, run)
    squares = [turn_losses(backbone, turned_means(backbone, each)).square() for each in copies]
    return 1 - min(1.0, float(torch.cat(squares).mean()) / log(TURNS))
