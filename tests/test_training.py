"""The learned parts through the command line: scratch, known anomalies, more effort; and the quality they must keep."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import anomaly, rows_of
from conftest import SETTINGS, spoiled, texture
from PIL import Image

from anomaly_cli.backbone import EMBEDDED, empty_backbone
from anomaly_cli.checkpoint import load_model
from anomaly_cli.detector import AnomalyDetector, ScaleModel
from anomaly_cli.distance_head import HeadData, HeadWeights
from anomaly_cli.known import KnownAnomalies
from anomaly_cli.memory import Whitening
from anomaly_cli.scales import IMAGE_SCALE, SMALL_SCALE
from anomaly_cli.training import FOLDS_OF_FEW, deal_folds, score_weights

ROOT = Path(__file__).parent.parent


def scores(folder: str, model: str) -> dict[str, float]:
    result = anomaly("score", folder, "--model", model, "--out", "-", "-q")
    assert result.exit_code == 0, result.stderr
    return {row["path"]: float(row["score"]) for row in rows_of(result.stdout_bytes)}


def test_every_image_is_held_out_once_and_folds_are_even() -> None:
    for count, folds in ((8, 8), (30, FOLDS_OF_FEW), (103, 5)):
        sizes = torch.bincount(deal_folds(count, seed=3))
        assert len(sizes) == folds
        assert sizes.sum() == count
        assert sizes.max() - sizes.min() <= 1


@pytest.mark.parametrize(
    ("mean", "side", "expected"),
    [(100.0, 256, 3.0), (3.0, 256, 1.5), (2.0, 256, 1.0), (100.0, 64, 0.75)],
    ids=["alike", "half way", "little in common", "small pictures"],
)
def test_the_map_weighs_more_where_images_are_alike_and_large(mean: float, side: int, expected: float) -> None:
    scales = {
        name: ScaleModel(Whitening(torch.full((3,), mean), torch.eye(3)))
        for name in ("8", "16", IMAGE_SCALE, SMALL_SCALE)
    }

    weights = score_weights(AnomalyDetector(empty_backbone(EMBEDDED), scales), side)

    assert weights.tolist() == pytest.approx([expected, 0, 0, 1, 0.5], rel=0.001)


def test_known_anomalies_weigh_a_share_of_all_other_voices() -> None:
    scales = {name: ScaleModel(Whitening(torch.full((3,), 3.0), torch.eye(3))) for name in ("8", "16", IMAGE_SCALE)}
    looks = torch.zeros(4, 2)
    known = KnownAnomalies(looks, looks, torch.zeros(2), torch.tensor(0.0))

    weights = score_weights(AnomalyDetector(empty_backbone(EMBEDDED), scales, known), 256)

    assert weights.tolist() == pytest.approx([1.5, 0, 0, 1, 2.5 * 2 / 7], rel=0.001)


def test_a_model_from_scratch_is_read_back_and_ranks_the_anomalies_first(here: Path) -> None:
    result = anomaly("train", "normal", *SETTINGS, "--backbone", "scratch", "--model", "scratch.safetensors", "-q")
    assert result.exit_code == 0, result.stderr

    ranked = list(scores("incoming", "scratch.safetensors"))

    assert all("bad" in path for path in ranked[:3])


def test_known_anomalies_are_counted_and_never_worsen_the_ranking(here: Path) -> None:
    draw = np.random.default_rng(5)
    Path("known").mkdir()
    for i in range(6):
        Image.fromarray(spoiled(draw, texture(draw, 64, 64))).save(f"known/{i}.png")

    result = anomaly("train", "normal", *SETTINGS, "--anomalies", "known", "--model", "known.safetensors")

    assert result.exit_code == 0, result.stderr
    assert load_model(Path("known.safetensors")).provenance.anomalies == 6
    assert all("bad" in path for path in list(scores("incoming", "known.safetensors"))[:3])


def test_the_most_thorough_training_weighs_deviations_of_synthetic_anomalies(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    met: list[HeadData] = []

    def learn(data: HeadData, seed: int) -> HeadWeights:
        met.append(data)
        channels = [torch.full((each.shape[1],), 2.0) for each in data.channels]
        return HeadWeights(channels, torch.full((len(channels),), 3.0), 0.25)

    monkeypatch.setattr("anomaly_cli.training.learn_head", learn)
    settings = [*SETTINGS[:4], "--effort", "thorough", "--model", "thorough.safetensors"]

    result = anomaly("train", "normal", *settings)

    assert result.exit_code == 0, result.stderr
    images = len(met[0].anomalous) // 2
    assert met[0].anomalous.tolist() == [False] * images + [True] * images
    normal, changed = met[0].channels[0].sum(1).chunk(2)
    assert changed.median() > normal.median()
    model = load_model(Path("thorough.safetensors"))
    scale = model.detector.scale("8")
    assert model.provenance.head_gain == 0.25
    assert (scale.channel_weights == 2).all()
    assert scale.weight == 3


def test_washers_with_defects_rank_above_normal_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "sample_data" / "normal", "normal")
    shutil.copytree(ROOT / "sample_data" / "incoming", "incoming")

    assert anomaly("train", "normal", "-q").exit_code == 0
    assert anomaly("score", "incoming", "-q").exit_code == 0

    result = anomaly("evaluate", "scores.csv", "--labels", str(ROOT / "sample_data" / "labels.csv"), "-q", "-o", "-")
    assert json.loads(result.stdout)["figures"]["image_auroc"]["value"] >= 0.95
