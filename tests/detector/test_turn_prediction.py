"""The loss of stage 1, and the batches that it is computed on."""

from math import exp, log

import numpy as np
import pytest
import torch
from shared_run import CONFIG
from torch import nn

from anomaly_cli.detector import turn_prediction
from anomaly_cli.detector.backbones.build import build_backbone
from anomaly_cli.detector.turn_prediction import EXPOSURE_WEIGHT, LABELLED_WEIGHT, Schedule, StageOne
from anomaly_cli.training.distributed import SINGLE_PROCESS
from anomaly_cli.training.run import TrainingContext
from anomaly_cli.training.stage1 import StageOneImages, draw_batch, learn_backbone


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
    learner = StageOne(build_backbone("scratch", seed=1)).eval()
    nn.init.normal_(learner.labelled_head.weight, generator=torch.Generator().manual_seed(3))
    nn.init.constant_(learner.labelled_head.bias, -0.5)
    views = torch.rand(6, 3, 64, 64, generator=torch.Generator().manual_seed(2))  # 3 images, two of each

    loss = learner(views, normal)

    turn_losses, exposed = [], []
    labelled: dict[bool, list[float]] = {True: [], False: []}
    for number, view in enumerate(views):
        for turns in range(4):
            embedding = learner.backbone(torch.rot90(view, turns, (1, 2))[None])[-1].mean(dim=(2, 3))
            logits = learner.backbone.turn_logits(embedding)
            if turns == 0:
                logit = float(learner.labelled_head(8 * embedding / embedding.norm()))
                labelled[bool(normal[number % 3])].append(log(1 + exp(logit if normal[number % 3] else -logit)))
            if normal[number % 3]:
                turn_losses.append(-float(logits.log_softmax(dim=1)[0, turns]))
            else:
                exposed.append(-float(logits.log_softmax(dim=1).mean()))
    expected = np.mean(turn_losses) + EXPOSURE_WEIGHT * np.mean(exposed)
    expected += LABELLED_WEIGHT * (np.mean(labelled[True]) + np.mean(labelled[False]))
    assert float(loss) == pytest.approx(expected, rel=1e-4)


@torch.no_grad()
def test_a_batch_without_labelled_anomalies_teaches_the_turns_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turn_prediction, "LABELLED_WEIGHT", 1e6)
    learner = StageOne(build_backbone("scratch", seed=1)).eval()

    assert 0 < float(learner(torch.rand(6, 3, 64, 64), torch.ones(3, dtype=torch.bool))) < 10


def test_only_a_backbone_with_a_turn_head_can_learn() -> None:
    with pytest.raises(ValueError, match="backbone embedded has no turn head"):
        StageOne(build_backbone("embedded"))


def test_stage_one_changes_a_scratch_backbone_and_repeats_with_its_seed() -> None:
    images = [np.random.default_rng(i).integers(0, 255, (64, 64, 3), np.uint8) for i in range(4)]
    seen: list[int] = []

    def learn() -> dict[str, torch.Tensor]:
        backbone = build_backbone("scratch", seed=1)
        schedule = Schedule(2, 64)
        run = TrainingContext(CONFIG, torch.device("cpu"), 1, lambda _phase, done, _total: seen.append(done))
        learn_backbone(backbone, StageOneImages(images, [], []), schedule, run)
        assert not backbone.training
        return backbone.state_dict()

    first, second, untrained = learn(), learn(), build_backbone("scratch", seed=1).state_dict()

    assert seen == [1, 2, 1, 2]
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=1e-4, atol=1e-5)
    assert any(not torch.equal(value, untrained[name]) for name, value in first.items() if "conv" in name)
