"""Known anomalies: what labels add, against slow twins; and that they help from the command line."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import anomaly, rows_of
from conftest import SETTINGS, SIDE, spoiled, texture
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from anomaly_cli import known
from anomaly_cli.checkpoint import load_model
from anomaly_cli.known import KnownAnomalies, fit_known, fit_look
from anomaly_cli.memory import Whitening

LOOKS, CHANNELS = 6, 4


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_answers_equal_a_loop_over_images_and_cells() -> None:
    weights, cells = random(LOOKS), random(7, CHANNELS, seed=1)
    looks, queries, distances = random(3, LOOKS, seed=2), random(3, 30, CHANNELS, seed=3), random(3, 30, seed=4).abs()

    answers = KnownAnomalies(looks, weights, torch.tensor(0.5), cells)(looks, queries, distances)

    for i in range(3):
        odds = math.exp(sum(float(looks[i, k] * weights[k]) for k in range(LOOKS)) + 0.5)
        ratios = [
            math.log(float(distances[i, c]) / min(float((queries[i, c] - cell).norm()) for cell in cells))
            for c in range(30)
        ]
        similar = math.exp(sum(sorted(ratios)[-known.SIMILAR :]) / known.SIMILAR)
        assert answers[i].tolist() == pytest.approx([odds, similar], rel=1e-4)


def test_a_cell_that_is_a_known_one_gives_a_large_finite_ratio() -> None:
    cells = random(1, CHANNELS)

    answers = KnownAnomalies(torch.zeros(1, LOOKS), torch.zeros(LOOKS), torch.tensor(0.0), cells)(
        torch.zeros(1, LOOKS), cells[None], torch.ones(1, 1)
    )

    assert 1e3 < answers[0, 1] <= math.exp(known.REACH)


def test_looks_are_told_apart_by_two_regressions_each_whitened_by_the_other_half() -> None:
    normal, anomalous = random(50, LOOKS), random(5, LOOKS, seed=1) + 2
    expected = np.zeros(55)
    for one, other in ((normal[::2], normal[1::2]), (normal[1::2], normal[::2])):
        whitening = Whitening.fit(one)
        scaler = StandardScaler().fit(whitening(other))
        known_looks = scaler.transform(whitening(torch.cat([other, anomalous])))
        twin = LogisticRegression(C=known.INVERSE_PENALTY, class_weight="balanced")
        twin.fit(known_looks, [0] * 25 + [1] * 5)
        expected += twin.decision_function(scaler.transform(whitening(torch.cat([normal, anomalous])))) / 2

    weights, offset = fit_look(normal, anomalous)

    odds = (torch.cat([normal, anomalous]) @ weights + offset).tolist()
    assert odds == pytest.approx(expected.tolist(), abs=1e-3)
    assert min(odds[50:]) > sorted(odds[:50])[25]


def test_one_known_anomaly_is_enough_for_a_fit() -> None:
    weights, offset = fit_look(random(8, LOOKS), random(1, LOOKS, seed=1) + 3)

    assert torch.isfinite(weights).all()
    assert torch.isfinite(offset)


def test_so_many_known_cells_are_kept_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known, "MAX_KNOWN_CELLS", 5)
    cells = random(40, CHANNELS)

    chosen = fit_known(random(20, LOOKS), random(3, LOOKS, seed=1), cells, seed=0).cells

    assert chosen.shape == (5, CHANNELS)
    assert all(any(torch.equal(each, cell) for cell in cells) for each in chosen)


@pytest.fixture
def labelled(here: Path) -> Path:
    """Four known anomalies and a file that is none."""
    rng = np.random.default_rng(5)
    (here / "known").mkdir()
    for i in range(4):
        Image.fromarray(spoiled(rng, texture(rng, SIDE, SIDE))).save(here / "known" / f"{i}.png")
    (here / "known" / "broken.png").write_bytes(b"no picture")
    return here


def test_labels_add_two_columns_and_survive_the_model_file(labelled: Path) -> None:
    trained = anomaly("train", "normal", *SETTINGS, "--anomalies", "known", "--model", "known.safetensors")
    scored = anomaly("score", "incoming", "--model", "known.safetensors", "--out", "known.csv")

    rows = rows_of((labelled / "known.csv").read_bytes())
    model = load_model(labelled / "known.safetensors")
    assert (trained.exit_code, scored.exit_code) == (0, 0)
    assert model.provenance.anomalies == 4
    assert model.detector.column_names[-2:] == known.KNOWN_NAMES
    assert {row["path"][-8:] for row in rows[:3]} == {"bad0.jpg", "bad1.jpg", "bad2.jpg"}
    assert all(float(row["scale_known_look"]) >= 0 and float(row["scale_known_cells"]) >= 0 for row in rows)
    assert min(float(row["scale_known_look"]) for row in rows[:3]) > max(
        float(row["scale_known_look"]) for row in rows[3:]
    )


def test_known_anomalies_that_cannot_be_read_leave_the_detector_as_it_is(labelled: Path) -> None:
    shutil.copytree(labelled / "normal", labelled / "clean", ignore=shutil.ignore_patterns("empty.png", "words.jpg"))
    trained = anomaly("train", "clean", *SETTINGS, "--anomalies", "known/broken.png", "--model", "none.safetensors")

    model = load_model(labelled / "none.safetensors")
    assert "warning: 1 file cannot be read and is left out:\n  known/broken.png: not an image\n" in trained.stderr
    assert model.provenance.anomalies == 0
    assert model.detector.known_anomalies is None
