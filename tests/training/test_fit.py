"""The learned parts: scratch, synthetic defects, labelled anomalies; and the quality they must keep."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import anomaly, rows_of
from PIL import Image
from shared_run import CONFIG, SETTINGS, texture, with_defect
from torch import Tensor

from anomaly_cli.config import Effort
from anomaly_cli.detector.anomaly_detector import AnomalyDetector, ScaleModel
from anomaly_cli.detector.anomaly_distance import MAX_SENSITIVITY, component_weights
from anomaly_cli.detector.backbones.backbone import EMBEDDED
from anomaly_cli.detector.backbones.build import empty_backbone
from anomaly_cli.detector.checkpoint import load_model
from anomaly_cli.detector.labelled_anomalies import LabelledAnomalyClassifier
from anomaly_cli.detector.scales import COARSE_SCALE, IMAGE_SCALE, SMALL_SCALE
from anomaly_cli.detector.whitening import Whitening
from anomaly_cli.training import stage1, stage2
from anomaly_cli.training.cross_fitting import FOLDS_OF_FEW, CrossFit, HeldOutImage, assign_folds
from anomaly_cli.training.run import TrainingContext
from anomaly_cli.training.stage2 import SYNTHETIC_DEFECTS, fit_scale_weights

ROOT = Path(__file__).parents[2]
MANY = 10**9  # normal images, so many that their number has no effect


def scores(folder: str, model: str) -> dict[str, float]:
    result = anomaly("score", folder, "--model", model, "--out", "-", "-q")
    assert result.exit_code == 0, result.stderr
    return {row["path"]: float(row["score"]) for row in rows_of(result.stdout_bytes)}


def test_every_image_is_held_out_once_and_folds_are_even() -> None:
    for count, folds in ((8, 8), (30, FOLDS_OF_FEW), (103, 5)):
        sizes = torch.bincount(assign_folds(count, seed=3))
        assert len(sizes) == folds
        assert sizes.sum() == count
        assert sizes.max() - sizes.min() <= 1


@pytest.mark.parametrize(
    ("sensitivity", "side", "images", "of_map", "of_coarse"),
    [
        ((2.47, 2.47), 256, MANY, 0.3 + 1 + 0.3125**4, 2.0),
        ((1.97, 0.47), 256, MANY, 0.3 + 0.8**4 + 1, 2.0),
        ((0.47, 0.47), 256, MANY, 0.3 + 0.2**4 + 0.0625**4, 1.0),
        ((0.94, 0.94), 128, MANY, 0.3 + 0.2**4 + 0.0625**4, 1.0),
        ((0.235, 0.235), 256, 16, 0.3 + 0.2**4 + 0.0625**4, 1.0),
        ((0.0, 0.0), 256, MANY, 0.3, 0.05 * 1.36),
    ],
    ids=["defects are clear", "clearer on the map", "they show", "small pictures", "few images", "they do not"],
)
def test_map_and_coarse_cells_weigh_more_where_defects_show_and_pictures_are_large_and_few(
    sensitivity: tuple[float, float], side: int, images: int, of_map: float, of_coarse: float
) -> None:
    whitening = Whitening(torch.zeros(3), torch.eye(3))
    scales = {name: ScaleModel(whitening) for name in ("8", "16", IMAGE_SCALE, SMALL_SCALE, COARSE_SCALE)}

    weights = component_weights(AnomalyDetector(empty_backbone(EMBEDDED), scales), side, images, sensitivity)

    assert weights.tolist() == pytest.approx([of_map, 0, 0, 0.5, 0.5, of_coarse], rel=1e-4)


def test_no_component_weighs_less_than_a_twentieth_of_the_sum() -> None:
    whitening = Whitening(torch.zeros(3), torch.eye(3))
    scales = {name: ScaleModel(whitening) for name in ("8", IMAGE_SCALE, SMALL_SCALE, COARSE_SCALE)}
    detector = AnomalyDetector(empty_backbone(EMBEDDED), scales)

    of_map, *others = component_weights(detector, 256, MANY, (4.97, 0.47)).tolist()

    sole = 0.3 + 2**4 + (5 * 5 / 0.5 / 8) ** 4
    assert of_map == pytest.approx(sole, rel=1e-4)
    assert others == pytest.approx([0, *3 * [0.05 * (sole + 0.5 + 0.5 + 2)]], rel=1e-4)


@pytest.mark.parametrize(("shown", "expected"), [((0.0, 2.0), (1.0, 5.0)), ((-1.0, 9.0), (1.0, 26.0))])
def test_a_scale_weighs_one_and_the_square_of_how_well_it_shows_planted_defects(
    shown: tuple[float, float], expected: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("8", "16", COARSE_SCALE)
    scales = [{name: ScaleModel(Whitening(torch.zeros(3), torch.eye(3))) for name in names} for _ in range(3)]
    detectors = [AnomalyDetector(empty_backbone(EMBEDDED), each) for each in scales]
    held_out = [HeldOutImage(i % 2, Path(f"{i}.png")) for i in range(5)]
    logs = torch.tensor([-1.0, 1.0, -1.0, 1.0, 70.0])  # spread 1 without the last, an outlier

    def maps(log: float, raised: tuple[float, float], coarse: float) -> list[Tensor]:
        of_sides = zip((8, 4, 2), (*raised, coarse), strict=True)
        return [torch.full((1, side, side), log + more).exp() for side, more in of_sides]

    monkeypatch.setattr(stage2, "SYNTHETIC_DEFECTS", SYNTHETIC_DEFECTS)
    planted: list[HeldOutImage] = []

    def measure(_detectors: object, items: list[HeldOutImage], *_: object) -> list[list[Tensor]]:
        planted.extend(items)
        return [maps(float(logs[int(item.path.stem)]), shown, 0.75) for item in items]

    monkeypatch.setattr("anomaly_cli.training.stage2.measure_held_out", measure)
    run = TrainingContext(CONFIG, torch.device("cpu"), 1, lambda *_: None)
    normal = [maps(float(log), (0.0, 0.0), 0.0) for log in logs]
    sensitivity = fit_scale_weights(CrossFit(detectors, held_out, normal, [4]), run)

    assert {item.path.name for item in planted} == {"0.png", "1.png", "2.png", "3.png"}
    assert all(item.other not in (None, item.path) for item in planted)
    assert len({item.defect_seed for item in planted}) == len(planted) == SYNTHETIC_DEFECTS
    assert all(item.fold == int(item.path.stem) % 2 for item in planted)
    for detector in detectors:
        weights = [float(detector.scale(name).weight) for name in ("8", "16")]
        assert weights == pytest.approx(expected, rel=1e-5)
    low, high = ((np.exp(s) * w) for s, w in zip(shown, expected, strict=True))
    raised = np.log((low + high) / sum(expected))  # of the fused map, whose spread is 1 too
    assert sensitivity == pytest.approx((min(raised, MAX_SENSITIVITY), 0.75), rel=1e-5)


def test_labelled_anomalies_weigh_a_share_of_all_other_components() -> None:
    scales = {name: ScaleModel(Whitening(torch.zeros(3), torch.eye(3))) for name in ("8", "16", IMAGE_SCALE)}
    descriptors = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    known = LabelledAnomalyClassifier(descriptors, torch.full((4, 2), 9.0), torch.zeros(2), torch.tensor(0.0))

    weights = component_weights(AnomalyDetector(empty_backbone(EMBEDDED), scales, known), 256, MANY, (0.47, 0.47))

    of_map = 0.3 + 0.2**4 + 0.0625**4
    assert weights.tolist() == pytest.approx([of_map, 0, 0, 1, (1 + of_map) * 2 / 7])


def test_a_model_from_scratch_is_read_back_and_ranks_the_anomalies_first(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(stage1.SCRATCH_STEPS, Effort.QUICK, 30)
    monkeypatch.setattr(stage1, "BATCH_SIZE", 4)
    result = anomaly("train", "normal", *SETTINGS, "--backbone", "scratch", "--model", "scratch.safetensors", "-q")
    assert result.exit_code == 0, result.stderr

    ranked = list(scores("incoming", "scratch.safetensors"))

    assert all("bad" in path for path in ranked[:3])


def test_labelled_anomalies_are_counted_and_never_worsen_the_ranking(here: Path) -> None:
    draw = np.random.default_rng(5)
    Path("known").mkdir()
    for i in range(6):
        Image.fromarray(with_defect(draw, texture(draw, 64, 64))).save(f"known/{i}.png")

    result = anomaly("train", "normal", *SETTINGS, "--anomalies", "known", "--model", "known.safetensors")

    assert result.exit_code == 0, result.stderr
    assert load_model(Path("known.safetensors")).provenance.anomalies == 6
    assert all("bad" in path for path in list(scores("incoming", "known.safetensors"))[:3])


def test_washers_with_defects_rank_above_normal_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage2, "SYNTHETIC_DEFECTS", SYNTHETIC_DEFECTS)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "sample_data" / "normal", "normal")
    shutil.copytree(ROOT / "sample_data" / "incoming", "incoming")

    assert anomaly("train", "normal", "--image-size", "96", "-q").exit_code == 0
    assert anomaly("score", "incoming", "-q").exit_code == 0

    result = anomaly("evaluate", "scores.csv", "--labels", str(ROOT / "sample_data" / "labels.csv"), "-q", "-o", "-")
    assert json.loads(result.stdout)["figures"]["image_auroc"]["value"] >= 0.95
