"""Known anomalies: what labels add, against slow twins; and that they help from the command line."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import anomaly, rows_of
from PIL import Image
from shared_run import SETTINGS, SIDE, texture, with_defect
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from anomaly_cli.detector import labelled_anomalies
from anomaly_cli.detector.checkpoint import load_model, save_model
from anomaly_cli.detector.labelled_anomalies import LabelledAnomalyClassifier, fit_labelled, fit_log_odds
from anomaly_cli.detector.whitening import Whitening
from anomaly_cli.errors import CheckpointError

WIDTH = 6


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_odds_equal_a_loop_over_images_and_channels_and_stay_finite() -> None:
    weights, descriptors = random(WIDTH), random(3, WIDTH, seed=2)
    descriptors[2] = weights * 1e6
    known_anomalies = LabelledAnomalyClassifier(random(5, WIDTH), random(2, WIDTH), weights, torch.tensor(0.5))

    odds = known_anomalies(descriptors)

    assert odds.shape == (3, 1)
    for i in range(2):
        logarithm = sum(float(descriptors[i, k]) * float(weights[k]) for k in range(WIDTH)) + 0.5
        assert float(odds[i]) == pytest.approx(math.exp(logarithm), rel=1e-4)
    assert float(odds[2]) == pytest.approx(math.exp(labelled_anomalies.REACH), rel=1e-4)


@pytest.mark.parametrize(("count", "weight"), [(1, 1 / 7), (4, 2 / 7), (12, 12**0.5 / 7), (25, 0.5), (1000, 0.5)])
def test_the_weight_of_labelled_anomalies_grows_with_their_number_up_to_a_limit(count: int, weight: float) -> None:
    far = random(count, WIDTH, seed=1) + 10

    assert fit_labelled(random(40, WIDTH), far).weight == pytest.approx(weight)


def test_the_separation_of_labels_equals_a_loop_in_which_each_is_measured_by_a_fit_without_it() -> None:
    normal, anomalous = random(40, WIDTH), random(3, WIDTH, seed=1) + 1
    logs: list[list[float]] = [[], []]
    for part in range(3):
        kept = [i for i in range(40) if i % 3 != part]
        weights, offset = fit_log_odds(normal[kept], anomalous[[i for i in range(3) if i != part]])
        logs[0] += [float(normal[i] @ weights + offset) for i in range(40) if i % 3 == part]
        logs[1].append(float(anomalous[part] @ weights + offset))
    expected = (np.mean(logs[1]) - np.mean(logs[0])) / np.std(logs[0], ddof=1)

    assert labelled_anomalies.cross_validated_separation(normal, anomalous) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("count", [6, 12])
def test_normal_images_that_were_labelled_anomalous_count_little(count: int) -> None:
    reliabilities = [
        fit_labelled(random(60, WIDTH, seed=seed), random(count, WIDTH, seed=100 + seed)).reliability
        for seed in range(8)
    ]

    assert np.mean(reliabilities) < 0.3
    assert np.median(reliabilities) == 0


@pytest.mark.parametrize(
    ("count", "separation", "reliability"),
    [(2, 0.5, 0.8), (3, 0.75, 0.8), (6, -1.0, 0.0), (6, 0.75, 0.5), (12, 0.5, 0.0), (12, 1.0, 1.0), (12, 9.0, 1.0)],
)
def test_few_labels_get_the_benefit_of_the_doubt(
    monkeypatch: pytest.MonkeyPatch, count: int, separation: float, reliability: float
) -> None:
    monkeypatch.setattr(labelled_anomalies, "cross_validated_separation", lambda *_: separation)
    parts = random(40, WIDTH), random(count, WIDTH), random(WIDTH), torch.tensor(0.0)

    assert LabelledAnomalyClassifier(*parts).reliability == pytest.approx(reliability)


def test_one_label_cannot_be_checked_and_counts() -> None:
    assert fit_labelled(random(40, WIDTH), random(1, WIDTH, seed=1)).reliability == 1


def test_mislabelled_images_are_said_and_leave_the_scores_as_they_are(labelled: Path) -> None:
    odd = labelled / "mistaken"
    odd.mkdir()
    rng = np.random.default_rng(7)
    for i in range(6):
        Image.fromarray(texture(rng, SIDE, SIDE)).save(odd / f"{i}.{'png' if i % 2 else 'jpg'}", quality=95)

    trained = anomaly("train", "normal", *SETTINGS, "--anomalies", "mistaken", "--model", "odd.safetensors")
    anomaly("score", "incoming", "--model", "odd.safetensors", "--out", "odd.csv")
    anomaly("score", "incoming", "--out", "plain.csv")

    assert trained.exit_code == 0
    assert (
        "warning: the labelled anomalies can hardly be told from normal images, and count for 0 % of their weight: "
        "check that they are anomalous\n"
    ) in trained.stderr
    scores, plain = (
        {row["path"]: row["score"] for row in rows_of((labelled / name).read_bytes())}
        for name in ("odd.csv", "plain.csv")
    )
    assert scores == plain


def test_descriptors_are_separated_by_two_regressions_each_whitened_by_the_other_half() -> None:
    normal, anomalous = random(50, WIDTH), random(5, WIDTH, seed=1) + 2
    variances = normal.var(0, unbiased=False)
    expected, unit = np.zeros(55), ((50 * variances + 10 * variances.mean()) / 60).sqrt()
    for one, other in ((normal[::2], normal[1::2]), (normal[1::2], normal[::2])):
        whitening = Whitening.fit(one / unit, labelled_anomalies.DESCRIPTOR_FLOOR)
        scaler = StandardScaler().fit(whitening(other / unit))
        scaler.scale_ = np.sqrt((25 * scaler.var_ + 10 * scaler.var_.mean()) / 35)
        labelled = scaler.transform(whitening(torch.cat([other, anomalous]) / unit))
        twin = LogisticRegression(C=labelled_anomalies.INVERSE_PENALTY, class_weight="balanced")
        twin.fit(labelled, [0] * 25 + [1] * 5)
        expected += twin.decision_function(scaler.transform(whitening(torch.cat([normal, anomalous]) / unit))) / 2

    weights, offset = fit_log_odds(normal, anomalous)

    odds = (torch.cat([normal, anomalous]) @ weights + offset).tolist()
    assert odds == pytest.approx(expected.tolist(), abs=1e-3)
    assert min(odds[50:]) > sorted(odds[:50])[25]


def test_one_labelled_anomaly_is_enough_for_a_fit() -> None:
    weights, offset = fit_log_odds(random(8, WIDTH), random(1, WIDTH, seed=1) + 3)

    assert torch.isfinite(weights).all()
    assert torch.isfinite(offset)


@pytest.fixture
def labelled(here: Path) -> Path:
    """Four labelled anomalies and a file that is none."""
    rng = np.random.default_rng(5)
    (here / "known").mkdir()
    for i in range(4):
        Image.fromarray(with_defect(rng, texture(rng, SIDE, SIDE))).save(here / "known" / f"{i}.png")
    (here / "known" / "broken.png").write_bytes(b"no picture")
    return here


def test_labels_add_a_column_and_survive_the_model_file(labelled: Path) -> None:
    trained = anomaly("train", "normal", *SETTINGS, "--anomalies", "known", "--model", "known.safetensors")
    scored = anomaly("score", "incoming", "--model", "known.safetensors", "--out", "known.csv")

    rows = rows_of((labelled / "known.csv").read_bytes())
    model = load_model(labelled / "known.safetensors")
    assert (trained.exit_code, scored.exit_code) == (0, 0)
    assert model.provenance.anomalies == 4
    assert model.detector.column_names[-1] == labelled_anomalies.LABELLED_NAME
    assert {row["path"][-8:] for row in rows[:3]} == {"bad0.jpg", "bad1.jpg", "bad2.jpg"}
    odds = [float(row["scale_known"]) for row in rows]
    assert min(odds) >= 0
    assert min(odds[:3]) > max(odds[3:])


def test_a_model_with_labelled_anomalies_says_what_it_was_trained_on(labelled: Path) -> None:
    anomaly("train", "normal", *SETTINGS, "--anomalies", "known", "--model", "known.safetensors")

    result = anomaly("info", "known.safetensors")

    assert result.exit_code == 0
    assert "4 labelled anomalous" in result.stdout


@pytest.mark.parametrize("part", ["normal", "looks", "look_weights", "look_offset"])
def test_labelled_anomalies_of_another_width_than_the_detector_are_damage(labelled: Path, part: str) -> None:
    model = load_model(labelled / "anomaly.safetensors")
    width = model.detector.descriptor_width
    shapes = {"normal": (8, width), "looks": (2, width), "look_weights": (width,), "look_offset": ()}
    parts = {name: torch.zeros(shape if name != part else (*shape, 3)) for name, shape in shapes.items()}
    model.detector.known_anomalies = LabelledAnomalyClassifier(*parts.values())
    save_model(model, labelled / "odd.safetensors")

    with pytest.raises(CheckpointError, match=r"odd\.safetensors is damaged or was edited; train the detector again"):
        load_model(labelled / "odd.safetensors")


def test_labelled_anomalies_that_cannot_be_read_leave_the_detector_as_it_is(labelled: Path) -> None:
    shutil.copytree(labelled / "normal", labelled / "clean", ignore=shutil.ignore_patterns("empty.png", "words.jpg"))
    trained = anomaly("train", "clean", *SETTINGS, "--anomalies", "known/broken.png", "--model", "none.safetensors")

    model = load_model(labelled / "none.safetensors")
    assert "warning: 1 file cannot be read and is left out:\n  known/broken.png: not an image\n" in trained.stderr
    assert model.provenance.anomalies == 0
    assert model.detector.known_anomalies is None
