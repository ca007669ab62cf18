import math

import numpy as np
import pytest
import torch
from shared_run import CONFIG

from anomaly_cli.detector.backbones.build import build_backbone
from anomaly_cli.detector.contrastive import (
    CONTRAST_WEIGHT,
    TEMPERATURE,
    Schedule,
    StageOne,
    memory_contrast,
    nt_xent,
    variance_penalty,
)
from anomaly_cli.training.distributed import SINGLE_PROCESS
from anomaly_cli.training.run import TrainingContext
from anomaly_cli.training.stage1 import StageOneImages, draw_batch, learn_backbone


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_nt_xent_equals_its_definition() -> None:
    z, positive = draw(5, 3), draw(5, 3, seed=1)

    loss = nt_xent(z, positive)

    expected = 0.0
    for i in range(5):
        cosines = [float(torch.cosine_similarity(z[i], positive[j], dim=0)) for j in range(5)]
        expected -= math.log(math.exp(cosines[i] / TEMPERATURE) / sum(math.exp(c / TEMPERATURE) for c in cosines)) / 5
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_collapsed_channels_are_penalised_and_spread_ones_are_not() -> None:
    assert float(variance_penalty(torch.ones(8, 4))) == 1.0
    assert float(variance_penalty(draw(1000, 4) * 3)) == 0.0


def test_a_labelled_anomaly_never_reaches_the_memory() -> None:
    prototypes = draw(6, 4, seed=2).requires_grad_()
    anomalous = torch.zeros(5, dtype=torch.bool)

    memory_contrast(draw(5, 4), draw(5, 4, seed=1), anomalous, prototypes).backward()

    assert prototypes.grad is None or not prototypes.grad.any()


def test_a_normal_image_moves_the_memory() -> None:
    prototypes = draw(6, 4, seed=2).requires_grad_()

    memory_contrast(draw(5, 4), draw(5, 4, seed=1), torch.ones(5, dtype=torch.bool), prototypes).backward()

    assert prototypes.grad is not None
    assert prototypes.grad.any()


def test_views_come_in_pairs_of_one_image() -> None:
    # However a view is lit, it tells from which of these it is.
    images = [np.full((64, 64, 3), value, np.uint8) for value in (5, 60, 250)]

    views, chosen = draw_batch(images, 32, (0, 0), SINGLE_PROCESS)

    n = len(chosen)
    assert views.shape == (2 * n, 3, 32, 32)
    levels = torch.tensor([0.08, 0.45])
    assert torch.bucketize(views.mean(dim=(1, 2, 3)), levels).view(2, n).tolist() == [chosen.tolist()] * 2
    assert not torch.equal(views[:n], views[n:])


@torch.no_grad()
def test_the_loss_of_a_batch_is_that_of_images_and_turned_images_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANOMALY_FLOAT32", "1")
    normal = torch.tensor([True, False, True])
    learner = StageOne(build_backbone("scratch", seed=1), Schedule(1, 64, prototypes=8), 0).eval()
    views = torch.rand(6, 3, 64, 64, generator=torch.Generator().manual_seed(2))  # 3 images, two of each

    loss = learner(views, normal)

    contrast, turn_losses = 0.0, []
    of_memory = torch.tensor([bool(normal[image]) and turns == 0 for image in range(3) for turns in range(4)])
    for scale, prototypes in enumerate(learner.memories, start=1):
        rows = []
        for view in views:
            for turns in range(4):
                maps = learner.backbone(torch.rot90(view, turns, (1, 2))[None])
                rows.append(maps[scale].mean(dim=(2, 3))[0])
        rows_of = torch.stack(rows).chunk(2)
        contrast += float(memory_contrast(rows_of[0], rows_of[1], of_memory, prototypes)) / len(learner.memories)
    for number, view in enumerate(views):
        for turns in range(4):
            logits = learner.backbone.turn_logits(
                learner.backbone(torch.rot90(view, turns, (1, 2))[None])[-1].mean(dim=(2, 3))
            )
            if normal[number % 3]:
                turn_losses.append(-float(logits.log_softmax(dim=1)[0, turns]))
    assert float(loss) == pytest.approx(np.mean(turn_losses) + CONTRAST_WEIGHT * contrast, rel=1e-4)


def test_stage_one_changes_a_scratch_backbone_and_repeats_with_its_seed() -> None:
    images = [np.random.default_rng(i).integers(0, 255, (64, 64, 3), np.uint8) for i in range(4)]
    seen: list[int] = []

    def learn() -> dict[str, torch.Tensor]:
        backbone = build_backbone("scratch", seed=1)
        schedule = Schedule(2, 64, prototypes=8)
        normal = torch.tensor([True, True, True, False])
        run = TrainingContext(CONFIG, torch.device("cpu"), 1, lambda _phase, done, _total: seen.append(done))
        learn_backbone(backbone, StageOneImages(images, normal, []), schedule, run)
        assert not backbone.training
        return backbone.state_dict()

    first, second, untrained = learn(), learn(), build_backbone("scratch", seed=1).state_dict()

    assert seen == [1, 2, 1, 2]
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=1e-4, atol=1e-5)
    assert any(not torch.equal(value, untrained[name]) for name, value in first.items() if "conv" in name)
