"""Which labelled anomalies stage 1 draws, from when on, and how often."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from shared_run import CONFIG

from anomaly_cli.detector.backbones.backbone import Backbone
from anomaly_cli.detector.backbones.build import build_backbone
from anomaly_cli.detector.features import scale_features
from anomaly_cli.detector.scales import LEARNED_SCALE, TURNED_SCALE
from anomaly_cli.detector.turn_prediction import Schedule
from anomaly_cli.training import labelled_draws, stage1
from anomaly_cli.training.labelled_draws import MAX_REPEATS, LabelledDraws, labelled_repeats
from anomaly_cli.training.run import TrainingContext
from anomaly_cli.training.stage1 import StageOneImages, learn_backbone
from anomaly_cli.training.step_cache import SavedSteps

RUN = TrainingContext(CONFIG, torch.device("cpu"), 1, lambda *_: None)

Pixels = NDArray[np.uint8]


def noisy(count: int, seed: int, *, bright: int = 0) -> list[Pixels]:
    """Images of noise, on request with a bright bar of so many rows."""
    rng = np.random.default_rng(seed)
    images = [rng.integers(0, 200, (64, 64, 3), np.uint8) for _ in range(count)]
    for image in images:
        image[:bright] = 255
    return images


def judged(labelled: list[Pixels], unseen: list[Pixels], normal: int = 1000) -> int | None:
    draws = LabelledDraws()
    draws.judge(build_backbone("scratch", seed=1).eval(), labelled, unseen, normal, RUN)
    return draws.repeats


@pytest.mark.parametrize(
    ("normal", "labelled", "repeats"), [(2250, 132, 5), (2250, 6, 5), (60, 12, 2), (60, 40, 1), (8, 100, 1)]
)
def test_labelled_anomalies_are_drawn_more_often_where_they_are_few(normal: int, labelled: int, repeats: int) -> None:
    assert labelled_repeats(normal, labelled) == repeats


@pytest.mark.parametrize(("bright", "repeats"), [(12, MAX_REPEATS), (0, 0)])
def test_only_labelled_images_that_differ_from_unseen_normal_ones_are_drawn(bright: int, repeats: int) -> None:
    assert judged(noisy(12, 1, bright=bright), noisy(40, 2)) == repeats


@pytest.mark.parametrize(("labelled", "unseen"), [(5, 40), (12, 5), (12, 0), (0, 40)])
def test_too_few_images_to_judge_by_are_not_drawn(labelled: int, unseen: int) -> None:
    assert judged(noisy(labelled, 1, bright=12), noisy(unseen, 2)) == 0


@pytest.mark.parametrize(("separation", "repeats"), [(0.5, 0), (0.7, 2), (1.0, 5), (-3.0, 0)])
def test_labelled_images_that_hardly_differ_are_drawn_less_often(
    separation: float, repeats: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(labelled_draws, "cross_validated_separation", lambda *_: separation)

    assert judged(noisy(6, 1), noisy(6, 2)) == repeats


def test_images_are_judged_by_their_learned_embedding(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[torch.Tensor] = []

    def compare(unseen: torch.Tensor, labelled: torch.Tensor) -> float:
        compared.extend([unseen, labelled])
        return 1.0

    monkeypatch.setattr(labelled_draws, "cross_validated_separation", compare)
    labelled, unseen = noisy(6, 1), noisy(7, 2)

    judged(labelled, unseen)

    backbone = build_backbone("scratch", seed=1).eval()
    for embeddings, images in zip(compared, (unseen, labelled), strict=True):
        batch = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
        with torch.inference_mode():
            expected = scale_features(backbone, batch, (TURNED_SCALE, LEARNED_SCALE))[LEARNED_SCALE]
        torch.testing.assert_close(embeddings, expected.flatten(1), atol=1e-5, rtol=1e-4)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the pools that the steps of a short stage 1 draw from."""
    sizes: list[int] = []
    draw = stage1.draw_batch

    def noted(images: list[Pixels], *rest: object) -> object:
        sizes.append(len(images))
        return draw(images, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(stage1, "draw_batch", noted)
    monkeypatch.setattr(stage1, "BATCH_SIZE", 2)
    monkeypatch.setattr(stage1, "STEPS_BETWEEN_SAVES", 2)
    return sizes


def learned(images: StageOneImages, run: TrainingContext = RUN) -> Backbone:
    backbone = build_backbone("scratch", seed=1)
    learn_backbone(backbone, images, Schedule(10, 64), run)
    return backbone


def test_labelled_anomalies_join_when_they_have_been_judged(drawn: list[int]) -> None:
    images = StageOneImages(noisy(60, 0), noisy(6, 1, bright=12), noisy(8, 2))

    learned(images)

    assert drawn == [60] * 3 + [60 + 4 * 6] * 7


def test_normal_images_given_as_anomalies_change_nothing(drawn: list[int]) -> None:
    normal, unseen = noisy(20, 0), noisy(30, 2)

    with_labels = learned(StageOneImages(normal, noisy(12, 1), unseen)).state_dict()
    without = learned(StageOneImages(normal, [], unseen)).state_dict()

    assert drawn == [20] * len(drawn)
    assert all(torch.equal(value, without[name]) for name, value in with_labels.items())


def test_the_kept_weights_are_those_after_labelled_anomalies_joined(
    drawn: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    known = iter([0.9, 0.1, 0.2, 0.3, 0.2])  # after 2, 4, … steps: the best before they join is forgotten
    weights: list[torch.Tensor] = []

    def measure(averaged: Backbone, *_: object) -> float:
        weights.append(averaged.state_dict()["turn_head.weight"].clone())
        return next(known)

    monkeypatch.setattr(stage1, "turn_information", measure)

    kept = learned(StageOneImages(noisy(60, 0), noisy(6, 1, bright=12), noisy(8, 2)))

    assert torch.equal(kept.state_dict()["turn_head.weight"], weights[3])


def test_an_interrupted_run_draws_as_one_that_was_not(drawn: list[int], tmp_path: Path) -> None:
    images = StageOneImages(noisy(60, 0), noisy(6, 1, bright=12), noisy(8, 2))
    whole = learned(images).state_dict()
    drawn.clear()

    def stop(_phase: str, done: int, _total: int) -> None:
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learned(images, replace(RUN, progress=stop, saved=SavedSteps(tmp_path, {"of": "this test"})))
    resumed = learned(images, replace(RUN, saved=SavedSteps(tmp_path, {"of": "this test"}))).state_dict()

    assert drawn == [60] * 3 + [84] * 4 + [84] * 4  # six steps were saved
    for name, value in whole.items():
        torch.testing.assert_close(value, resumed[name], rtol=1e-4, atol=1e-5)
