"""What stage 1 learns from, what it keeps, and what it measures."""

from __future__ import annotations

from math import log
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from shared_run import CONFIG

from anomaly_cli.detector.backbones.build import build_backbone
from anomaly_cli.detector.features import turned_embedding
from anomaly_cli.training import stage1
from anomaly_cli.training.run import TrainingContext
from anomaly_cli.training.stage1 import AVERAGING, WARM_UP, learn_from_scratch, turn_information

RUN = TrainingContext(CONFIG, torch.device("cpu"), 1, lambda *_: None)


def write_images(folder: Path, count: int) -> list[Path]:
    rng = np.random.default_rng(0)
    for i in range(count):
        Image.fromarray(rng.integers(0, 255, (64, 64, 3), np.uint8)).save(folder / f"{i:02}.png")
    return sorted(folder.iterdir())


@pytest.mark.parametrize(("normal", "learned"), [(49, 49), (51, 45)])
def test_every_tenth_normal_image_is_left_out_of_stage_one_where_there_are_enough(
    normal: int, learned: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = write_images(tmp_path, normal + 2)
    seen: list[tuple[int, list[bool]]] = []

    def note(_backbone: object, images: list[Any], labels: torch.Tensor, *_: object) -> None:
        seen.append((len(images), labels.tolist()))

    monkeypatch.setattr(stage1, "learn_backbone", note)
    backbone = build_backbone("scratch")

    learn_from_scratch(backbone, paths[:normal], paths[normal:], RUN)

    assert seen == [(learned + 2, [True] * learned + [False] * 2)]
    assert 0 <= float(backbone.turn_information) < 1


def test_the_information_about_turns_is_the_share_of_the_uncertainty_that_is_removed() -> None:
    backbone = build_backbone("scratch", seed=1)
    images = [np.random.default_rng(i).integers(0, 255, (64, 64, 3), np.uint8) for i in range(3)]

    known = turn_information(backbone, images, RUN)

    batch = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
    with torch.inference_mode():
        uncertainty = float(turned_embedding(backbone, batch).square().mean())
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
