"""What stage 1 learns from, what it keeps, and what it measures."""

from __future__ import annotations

from dataclasses import replace
from math import log
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from shared_run import CONFIG

from anomaly_cli.detector.backbones.backbone import Backbone
from anomaly_cli.detector.backbones.build import build_backbone
from anomaly_cli.detector.features import turn_losses, turned_means
from anomaly_cli.detector.turn_prediction import Schedule
from anomaly_cli.training import stage1
from anomaly_cli.training.run import TrainingContext
from anomaly_cli.training.stage1 import (
    AVERAGING,
    WARM_UP,
    StageOneImages,
    learn_backbone,
    learn_from_scratch,
    turn_information,
)

RUN = TrainingContext(CONFIG, torch.device("cpu"), 1, lambda *_: None)


def write_images(folder: Path, count: int) -> list[Path]:
    rng = np.random.default_rng(0)
    for i in range(count):
        Image.fromarray(rng.integers(0, 255, (64, 64, 3), np.uint8)).save(folder / f"{i:02}.png")
    return sorted(folder.iterdir())


@pytest.mark.parametrize(("normal", "left_out"), [(49, 0), (51, 13), (1100, 110)])
def test_some_normal_images_are_left_out_of_stage_one_to_calibrate_on(
    normal: int, left_out: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, anomaly = write_images(tmp_path, 2)
    paths = [tmp_path / f"{i:04}.png" for i in range(normal)]
    for path in paths:
        path.symlink_to(image)
    seen: list[StageOneImages] = []

    def note(_backbone: object, images: StageOneImages, *_: object) -> None:
        seen.append(images)

    monkeypatch.setattr(stage1, "learn_backbone", note)
    backbone = build_backbone("scratch")

    to_calibrate = learn_from_scratch(backbone, paths, [anomaly], RUN)

    (images,) = seen
    assert [len(each) for each in (images.normal, images.labelled, images.unseen)] == [normal - left_out, 1, left_out]
    assert len(to_calibrate) == (left_out or normal)
    assert 0 <= float(backbone.turn_information) < 1


def test_images_beyond_the_limit_of_memory_calibrate_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = write_images(tmp_path, 60)
    monkeypatch.setattr(stage1, "SCRATCH_PIXELS", 23 * CONFIG.image_size**2)
    monkeypatch.setattr(stage1, "learn_backbone", lambda *_: None)

    assert len(learn_from_scratch(build_backbone("scratch"), paths, [], RUN)) == 60 - 23


@pytest.mark.parametrize(("known", "made", "kept"), [([0.1, 0.2, 0.3, 0.4, 0.5], 10, 10), ([0.1, 0.3, 0.2, 0.1], 8, 4)])
def test_training_stops_where_no_more_is_learned_about_unseen_images(
    known: list[float], made: int, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage1, "STEPS_BETWEEN_SAVES", 2)
    monkeypatch.setattr(stage1, "PATIENCE", 0.3)
    answers, weights = iter(known), []

    def measure(averaged: Backbone, *_: object) -> float:
        weights.append({name: value.clone() for name, value in averaged.state_dict().items()})
        return next(answers)

    monkeypatch.setattr(stage1, "turn_information", measure)
    pixels = [np.random.default_rng(i).integers(0, 255, (64, 64, 3), np.uint8) for i in range(3)]
    steps: list[int] = []
    run = replace(RUN, progress=lambda _phase, done, _total: steps.append(done))
    backbone = build_backbone("scratch", seed=1)

    learn_backbone(backbone, StageOneImages(pixels, [], pixels), Schedule(10, 64), run)

    assert steps[-1] == made
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, weights[kept // 2 - 1][name]), name
    assert not torch.equal(weights[0]["turn_head.weight"], weights[-1]["turn_head.weight"])


def test_the_information_about_turns_is_the_share_of_the_uncertainty_that_is_removed() -> None:
    backbone = build_backbone("scratch", seed=1)
    images = [np.random.default_rng(i).integers(0, 255, (64, 64, 3), np.uint8) for i in range(3)]

    known = turn_information(backbone, images, RUN)

    batch = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
    with torch.inference_mode():
        uncertainty = float(turn_losses(backbone, turned_means(backbone, batch)).square().mean())
    assert known == pytest.approx(max(0.0, 1 - uncertainty / log(4)), abs=1e-5)


def test_the_learning_rate_rises_then_falls_to_zero() -> None:
    rates = [stage1._rate(step, 1000) for step in range(1001)]

    assert rates.index(max(rates)) == WARM_UP - 1
    assert rates[0] == pytest.approx(1 / WARM_UP)
    assert rates[-1] == pytest.approx(0)


def test_the_average_of_weights_forgets_the_random_start_first_and_then_moves_slowly() -> None:
    averaged, backbone = build_backbone("scratch", seed=1), build_backbone("scratch", seed=2)
    start, now = (dict(each.named_parameters())["network.stem.conv.weight"] for each in (averaged, backbone))
    first, target = start.detach().clone(), now.detach().clone()

    stage1._move_average(averaged, backbone, 0)
    early = start.detach().clone()
    stage1._move_average(averaged, backbone, 10**6)

    torch.testing.assert_close(early, first * 0.1 + target * 0.9)
    torch.testing.assert_close(start.detach(), early * AVERAGING + target * (1 - AVERAGING))
