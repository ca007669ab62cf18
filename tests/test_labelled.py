"""How loud labelled anomalies speak: chosen by those that were held out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CONFIG, spoiled, texture
from numpy.typing import NDArray
from PIL import Image

from anomaly_cli.checkpoint import Model
from anomaly_cli.detector import scale_features
from anomaly_cli.labelled import look_at_anomalies, measure_labelled, weigh_known
from anomaly_cli.normals import Cells, Run
from anomaly_cli.scales import IMAGE_SCALE

USUAL = np.array([2.0, 1.0, 0.6, 0.6])  # map, image scale, the two voices of known anomalies


def deviations(count: int, seed: int, *shifts: float) -> NDArray[np.float64]:
    logs = np.random.default_rng(seed).standard_normal((count, 4)) + np.array(shifts)
    values: NDArray[np.float64] = np.exp(logs)
    return values


def test_a_voice_that_tells_held_out_anomalies_is_turned_up_and_one_that_misleads_falls_silent() -> None:
    normal, labelled = deviations(200, 0, 0, 0, 0, 0), deviations(30, 1, 0.2, 0.2, 3, -3)

    weights = weigh_known(USUAL, normal, labelled)

    assert weights[:2].tolist() == [2.0, 1.0]
    assert weights[2] >= 0.6
    assert weights[3] == 0


def test_voices_that_repeat_what_the_others_say_keep_their_usual_weight() -> None:
    normal, labelled = deviations(50, 0, 0, 0, 0, 0), deviations(10, 1, 9, 9, 9, 9)

    assert weigh_known(USUAL, normal, labelled).tolist() == USUAL.tolist()


def test_without_a_held_out_anomaly_the_usual_weights_stay() -> None:
    assert weigh_known(USUAL, deviations(9, 0, 0, 0, 0, 0), np.zeros((0, 4))).tolist() == USUAL.tolist()


@pytest.fixture
def labelled_files(tmp_path: Path) -> list[Path]:
    draw = np.random.default_rng(5)
    paths = [tmp_path / f"{i}.png" for i in range(4)]
    for path in paths:
        Image.fromarray(spoiled(draw, texture(draw, 64, 64))).save(path)
    return paths


def measured(loaded: Model, paths: list[Path]) -> NDArray[np.float64]:
    detector = loaded.detector
    looks = torch.cat(
        [
            scale_features(detector.backbone, torch.rand(1, 3, 64, 64), (IMAGE_SCALE,))[IMAGE_SCALE].flatten(1)
            for _ in range(6)
        ]
    )
    normal = Cells(looks[:, None], torch.arange(6), torch.zeros(6, dtype=torch.int64))
    run = Run(CONFIG, torch.device("cpu"), 1, lambda *_: None)
    return measure_labelled(detector, normal, torch.arange(6) % 3, look_at_anomalies(detector, paths, run), run)


def test_every_labelled_anomaly_is_measured_once_and_like_any_other_image(
    loaded: Model, labelled_files: list[Path]
) -> None:
    rows = measured(loaded, labelled_files)

    assert rows.shape[0] == len(labelled_files)
    assert (rows > 0).all()


def test_an_unreadable_labelled_file_is_passed_over(loaded: Model, labelled_files: list[Path]) -> None:
    labelled_files[1].write_bytes(b"no image")

    assert len(measured(loaded, labelled_files)) == len(labelled_files) - 1


def test_a_single_labelled_anomaly_has_nothing_to_be_held_out_from(loaded: Model, labelled_files: list[Path]) -> None:
    assert len(measured(loaded, labelled_files[:1])) == 0
