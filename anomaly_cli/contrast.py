"""Stage 1: memory-augmented contrastive learning of embeddings and prototypes, all scales at once.

Equation (reconstructed, docs/method.md): L = Σ_s λ_s [ NT-Xent(z_s, z̃_s) + λ_V · mean_j max(0, 1 − std_j) ] with
z̃ = y · HF(z′) + (1 − y) · z′, y = 1 for a normal image and 0 for a labelled anomaly.

Of images of one kind the contrast alone learns little about form. So each is also met turned by quarters, as a picture
of another kind with y = 0 (Sohn et al. 2021, *Learning and Evaluating Representations for Deep One-class
Classification*; Tack et al. 2020 call it a shifted instance).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from anomaly_cli.augment import free_view
from anomaly_cli.backbone import Backbone
from anomaly_cli.detector import scale_features
from anomaly_cli.distributed import ALONE, Processes, share_statistics
from anomaly_cli.memory import hopfield_retrieve
from anomaly_cli.normals import Run

TEMPERATURE = 0.2  # of NT-Xent (Chen et al. 2020)
BETA = 16.0  # of the retrieval, for embeddings of unit length
VARIANCE_WEIGHT = 0.5  # λ_V
LEARNING_RATE = 1e-3
BATCH_SIZE = 16  # images, of all processes together
STEPS_BETWEEN_SAVES = 50  # half a minute on a CPU; weights and optimiser make 64 MB, saved in 0.2 s
PHASE = "learning features (stage 1)"
SAVED = "stage-1"  # step under which the state is saved


@dataclass(frozen=True)
class Schedule:
    """How long stage 1 runs."""

    steps: int
    crop: int  # pixels, side of the square views; a multiple of 32
    prototypes: int = 256  # a scale, learned by gradient


def nt_xent(z: Tensor, positive: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """Normalised temperature-scaled cross entropy (Chen et al. 2020, equation 1), one direction.

    Args:
        z: (B, D) embeddings.
        positive: (B, D) what each should be near; those of the other rows are its negatives.
        temperature: > 0.

    Returns:
        Scalar mean over the batch.
    """
    similarity = F.normalize(z, dim=1) @ F.normalize(positive, dim=1).T / temperature  # (B, B)
    return F.cross_entropy(similarity, torch.arange(len(z), device=z.device))


def variance_penalty(z: Tensor) -> Tensor:
    """Penalise channels that collapse: mean over D of max(0, 1 − std), for (B, D) embeddings of unit spread."""
    return F.relu(1 - z.std(dim=0)).mean()


def memory_contrast(z: Tensor, other: Tensor, normal: Tensor, prototypes: Tensor) -> Tensor:
    """Loss of one scale: contrast one view with what the memory retrieves for the other.

    Args:
        z: (B, D) embeddings of one view.
        other: (B, D) embeddings of the same in the other view.
        normal: (B,) bool; the others meet the other view itself, so they never enter the memory.
        prototypes: (K, D), compared at unit length and updated by the gradient.
    """
    D = z.shape[1]
    query = F.normalize(other, dim=1)
    retrieved = torch.where(normal[:, None], hopfield_retrieve(query, F.normalize(prototypes, dim=1), BETA), query)
    spread = variance_penalty(F.normalize(retrieved, dim=1) * D**0.5)
    return nt_xent(z, retrieved) + VARIANCE_WEIGHT * spread


class StageOne(nn.Module):
    """Backbone and prototypes of every scale: what stage 1 trains, on one process or several."""

    def __init__(
        self, backbone: Backbone, names: tuple[str, ...], schedule: Schedule, seed: int, processes: Processes = ALONE
    ) -> None:
        """Start with random prototypes.

        Args:
            backbone: with its starting weights; trained in place.
            names: scales that take part, each with λ_s = 1.
            schedule: size of views and memories.
            seed: of the prototypes.
            processes: each of which has its share of a batch.
        """
        super().__init__()
        device = next(backbone.parameters()).device
        with torch.inference_mode():
            shapes = scale_features(backbone, torch.zeros(1, 3, schedule.crop, schedule.crop, device=device), names)
        share_statistics(backbone, processes)
        generator = torch.Generator().manual_seed(seed)
        self.backbone = backbone
        self.names = names
        self.memories = nn.ParameterList(
            torch.randn(schedule.prototypes, shapes[name].shape[1], generator=generator) for name in names
        ).to(device)
        self._processes = processes

    def forward(self, views: Tensor, normal: Tensor) -> Tensor:
        """Compute the loss of the whole batch, summed over all scales: the same in every process.

        A local scale takes part with the mean of its cells, since two views show different parts of an image.

        Args:
            views: (4n, 3, H, W) in [0, 1], this process's share of the batch, as `draw_batch` orders it.
            normal: (N,) bool, of the images of the whole batch.
        """
        features = scale_features(self.backbone, views, self.names)
        kinds = torch.stack([normal, torch.zeros_like(normal)], dim=1).flatten()  # each image, then the same turned
        losses = []
        for name, prototypes in zip(self.names, self.memories, strict=True):
            embeddings = features[name].mean(dim=(2, 3))
            z, other = (self._processes.join_rows(rows) for rows in embeddings.chunk(2))
            losses.append(memory_contrast(z, other, kinds, prototypes))
        return torch.stack(losses).sum()


def learn_backbone(
    backbone: Backbone,
    names: tuple[str, ...],
    images: list[np.ndarray],
    normal: Tensor,
    schedule: Schedule,
    run: Run,
) -> None:
    """Train the whole backbone in place with stage 1, prototypes of every scale beside it.

    What is random in a step depends on the seed and the number of the step only, so that a run that goes on after a
    kill, and several processes, draw what one uninterrupted process draws.

    Args:
        backbone: with its starting weights; left in eval mode.
        names: scales that take part.
        images: (h, w, 3) uint8 at network size.
        normal: (N,) bool, false for labelled anomalies.
        schedule: how long.
        run: seed, processes, and where the state is saved now and then.
    """
    device = next(backbone.parameters()).device
    learner = StageOne(backbone, names, schedule, run.config.seed, run.processes)
    optimiser = torch.optim.AdamW(learner.parameters(), LEARNING_RATE, weight_decay=1e-4)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, schedule.steps)
    parts: dict[str, Any] = {"learner": learner, "optimiser": optimiser, "cosine": cosine}
    first = _go_on(parts, schedule, run)
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


def _go_on(parts: dict[str, Any], schedule: Schedule, run: Run) -> int:
    """Take up the state that a killed run saved: how many steps it had done."""
    state = run.processes.from_first(run.saved.load(SAVED) if run.processes.is_first else None)
    if state is None:
        return 0
    for name, part in parts.items():
        part.load_state_dict(state[name])
    run.saved.note_reuse(PHASE, state["steps"], schedule.steps)
    return int(state["steps"])


def draw_batch(
    images: list[np.ndarray], crop: int, seed: tuple[int, int], processes: Processes
) -> tuple[Tensor, Tensor]:
    """Draw the images of a step, and make both views of this process's share of them.

    Args:
        images: (h, w, 3) uint8.
        crop: pixels, side of the views.
        seed: of the run, and the number of the step.
        processes: each of which gets the same number of images, `BATCH_SIZE` in all or as few more as that takes.

    Returns:
        (4n, 3, crop, crop) views in [0, 1] of n images: by turns of an image and of the image turned, then as many
        others in the same order. And (N,) numbers of the images of the whole batch.
    """
    n = -(-BATCH_SIZE // processes.count)
    chosen = np.random.default_rng(seed).integers(len(images), size=n * processes.count)
    places = range(n * processes.rank, n * (processes.rank + 1))
    drawn = [_views(images[chosen[i]], crop, np.random.default_rng((*seed, 1 + i))) for i in places]
    views = torch.from_numpy(np.stack([view for kind in zip(*drawn, strict=True) for pair in kind for view in pair]))
    return views.permute(0, 3, 1, 2).float().div_(255), torch.from_numpy(chosen)


def _views(image: np.ndarray, crop: int, draw: np.random.Generator) -> list[list[np.ndarray]]:
    """Make twice a view of an image and one of it turned by quarters, both times by as many."""
    turns = int(draw.integers(1, 4))
    return [[np.rot90(free_view(image, crop, draw), k) for k in (0, turns)] for _ in range(2)]
