"""Outliers among the normal images, and the audit of a folder that has no normal set beside it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import anomaly, rows_of
from PIL import Image
from shared_run import CONFIG, SETTINGS, SIDE, texture, with_defect

from anomaly_cli.detector.backbones.build import build_backbone
from anomaly_cli.detector.calibration import OUTLIER_LIMIT, Calibration
from anomaly_cli.images.decode import load_image
from anomaly_cli.scoring.measure import measure_batch
from anomaly_cli.training.cell_samples import Cells
from anomaly_cli.training.cross_fitted_scores import score_normals
from anomaly_cli.training.fit import TrainedDetector, train_detector
from anomaly_cli.training.run import TrainingContext

SETTINGS_OF_AUDIT = tuple(word for word in SETTINGS if word not in ("--effort", "quick"))


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 normal images and 2 with a defect in one folder."""
    folder = tmp_path_factory.mktemp("mixed")
    rng = np.random.default_rng(1)
    for i in range(24):
        Image.fromarray(texture(rng, SIDE, SIDE)).save(folder / f"fine{i:02}.png")
    for i in range(2):
        Image.fromarray(with_defect(rng, texture(rng, SIDE, SIDE))).save(folder / f"with_defect{i}.png")
    return folder


@pytest.fixture(scope="module")
def run() -> TrainingContext:
    return TrainingContext(CONFIG, torch.device("cpu"), 1, lambda *_: None)


@pytest.fixture(scope="module")
def learned(mixed: Path, run: TrainingContext) -> TrainedDetector:
    return train_detector(sorted(mixed.iterdir()), [], build_backbone("embedded", None, 0), run)


def calibration_of(deviations: list[float]) -> Calibration:
    return Calibration.fit(np.array(deviations)[:, None], np.ones(1))


def test_outlyingness_is_the_distance_from_the_median_in_units_of_the_median_distance() -> None:
    deviations = [1.0, 1.2, 0.9, 1.1, 30.0, 1.05, 0.95]
    calibration = calibration_of(deviations)
    z = [(np.log(d) - calibration.location[0]) / calibration.spread[0] for d in deviations]
    median = sorted(z)[3]
    spread = 1.4826 * sorted(abs(value - median) for value in z)[3]

    outlying = calibration.robust_z(np.array(deviations)[:, None])

    assert outlying == pytest.approx([(value - median) / spread for value in z])
    assert calibration.outliers(np.array(deviations)[:, None]).tolist() == [d == 30 for d in deviations]


def test_the_limit_of_outliers_is_higher_for_few_images() -> None:
    few, many = (calibration_of(list(np.exp(np.linspace(-1, 1, n)))) for n in (8, 400))
    outlying = np.exp([[2.7]])

    assert all(each.robust_z(outlying)[0] > OUTLIER_LIMIT for each in (few, many))
    assert [bool(each.outliers(outlying)[0]) for each in (few, many)] == [False, True]


def test_identical_normal_images_are_no_outliers() -> None:
    assert calibration_of([2.0] * 9).robust_z(np.full((3, 1), 2.0)).tolist() == [0, 0, 0]


def test_cells_of_an_image_are_left_out_by_its_number() -> None:
    cells = Cells(torch.arange(6.0).view(6, 1, 1), torch.tensor([0, 0, 1, 2, 2, 3]), torch.arange(6) + 10)

    kept = cells.without(torch.tensor([0, 2]))

    assert kept.values.flatten().tolist() == [2, 5]
    assert kept.sources.tolist() == [1, 3]
    assert kept.places.tolist() == [12, 15]


def test_normal_images_with_a_defect_are_outliers(learned: TrainedDetector, mixed: Path) -> None:
    assert set(learned.outliers) >= {mixed / "with_defect0.png", mixed / "with_defect1.png"}
    assert len(learned.outliers) <= 4


def test_outliers_stay_in_the_calibration(learned: TrainedDetector) -> None:
    assert len(learned.calibration.normal_deviations) == 26


def test_an_audit_leaves_outliers_out_of_the_units(mixed: Path, run: TrainingContext) -> None:
    trained = train_detector(sorted(mixed.iterdir()), [], build_backbone("embedded", None, 0), run, clean=False)

    assert len(trained.calibration.normal_deviations) == 26 - len(trained.outliers)


def test_a_normal_image_is_scored_by_the_detector_that_has_not_seen_it(
    learned: TrainedDetector, run: TrainingContext
) -> None:
    rows = {Path(row.path): row for row in score_normals(learned, run)}

    for path, fold in zip(learned.normals.paths, learned.folds.tolist(), strict=True):
        image = load_image(path, CONFIG.image_size)
        measured = measure_batch(learned.fold_detectors[fold], learned.calibration, learned.map_scale, [image])[0]
        expected = learned.calibration.scores(measured.deviations[None])[0][0]
        assert rows[path].score == pytest.approx(expected)


def test_training_names_outliers_and_writes_the_audited_normals(here: Path, mixed: Path) -> None:
    shutil.copytree(mixed, "mixed")
    (here / "mixed" / "torn.png").write_bytes(b"")

    result = anomaly("train", "mixed", *SETTINGS, "--model", "m.safetensors", "--audit-normals", "normals.csv")

    rows = rows_of((here / "normals.csv").read_bytes())
    flagged = [row["path"] for row in rows if row["flagged"] == "true"]
    assert [row["path"] for row in rows[:2]] == flagged[:2]
    assert set(flagged) == {"mixed/with_defect0.png", "mixed/with_defect1.png"}
    assert (rows[-1]["path"], rows[-1]["status"], rows[-1]["reason"]) == ("mixed/torn.png", "unreadable", "empty file")
    assert len(rows) == 27
    assert result.exit_code == 0
    assert (
        "warning: 2 of the 26 normal images are outliers, left out of every memory; "
        "if not normal, remove them and train again:\n"
        "  mixed/with_defect0.png\n  mixed/with_defect1.png\n  flagged in normals.csv\n"
    ) in result.stderr


def test_an_audit_ranks_a_folder_without_a_normal_set(here: Path, mixed: Path) -> None:
    result = anomaly("audit", mixed, *SETTINGS_OF_AUDIT)

    rows = rows_of((here / "audit.csv").read_bytes())
    assert result.exit_code == 0
    assert {Path(row["path"]).name for row in rows[:2]} == {"with_defect0.png", "with_defect1.png"}
    assert [row["flagged"] for row in rows[:2]] == ["true", "true"]
    assert all((row["flagged"] == "true") == (float(row["score"]) >= 1) for row in rows)
    assert {row["p_value"] + row["q_value"] for row in rows} == {""}
    assert len(rows) == 26
    assert (
        "without a normal folder this ranks how rare an image is among the others; "
        "for p- and q-values train on images that are known to be normal\n"
    ) in result.stderr
    assert result.stderr.endswith("table: audit.csv\n")


def test_an_audit_writes_to_stdout_alone(here: Path, mixed: Path) -> None:
    result = anomaly("audit", mixed, *SETTINGS_OF_AUDIT, "--out", "-", "--format", "jsonl", "-q")

    assert len(result.stdout.splitlines()) == 26
    assert result.stderr == ""
    assert not list(here.glob("audit*"))


def test_an_audit_of_too_few_images_says_how_many_are_needed(here: Path) -> None:
    result = anomaly("audit", "incoming/good0.png", "incoming/good1.png", *SETTINGS_OF_AUDIT)

    assert result.exit_code == 1
    assert "2 readable images, at least 8 are needed" in result.stderr


def test_images_that_do_not_differ_are_refused(here: Path) -> None:
    Path("same").mkdir()
    for i in range(9):
        shutil.copy("incoming/good0.png", f"same/{i}.png")

    result = anomaly("audit", "same", *SETTINGS_OF_AUDIT)

    assert (result.exit_code, result.stderr) == (
        1,
        "error: the images do not differ from each other, so that nothing tells how much normal images vary: "
        "add images that are no copies\n",
    )
