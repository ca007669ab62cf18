"""Updating a model with new images: what it learns, what it keeps, and how it is recalibrated."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from command_line import anomaly, rows_of
from numpy.typing import NDArray
from PIL import Image
from shared_run import NORMALS, SIDE, texture, with_defect

from anomaly_cli.config import Effort
from anomaly_cli.detector.checkpoint import load_model
from anomaly_cli.detector.scales import TURNED_SCALE
from anomaly_cli.training import stage1

MODEL = "anomaly.safetensors"


def striped(rng: np.random.Generator) -> NDArray[np.uint8]:
    """A second kind of normal image, unlike those the model was trained on."""
    pixels = texture(rng, SIDE, SIDE)
    pixels[:, ::4] = 30
    return pixels


@pytest.fixture
def grown(here: Path) -> Path:
    """`more` holds ten images of a second kind, `fresh` three others, `known` four anomalies."""
    rng = np.random.default_rng(7)
    for folder, count in (("more", 10), ("fresh", 3)):
        (here / folder).mkdir()
        for i in range(count):
            Image.fromarray(striped(rng)).save(here / folder / f"{i}.png")
    (here / "known").mkdir()
    for i in range(4):
        Image.fromarray(with_defect(rng, texture(rng, SIDE, SIDE))).save(here / "known" / f"{i}.png")
    return here


def scores_of(folder: str, model: str) -> list[float]:
    result = anomaly("score", folder, "--model", model, "--out", "-", "-q")
    assert result.exit_code == 0
    return [float(row["score"]) for row in rows_of(result.stdout_bytes)]


def test_a_second_kind_of_normal_image_becomes_normal(grown: Path) -> None:
    before = scores_of("fresh", MODEL)

    result = anomaly("update", MODEL, "more", "--out", "grown.safetensors")

    model = load_model(grown / "grown.safetensors")
    assert result.exit_code == 0
    assert max(scores_of("fresh", "grown.safetensors")) < 1 < min(before)
    assert model.provenance.images == NORMALS + 10
    assert len(model.calibration.normal_deviations) == NORMALS + 10
    assert (
        result.stderr.splitlines()[-3] == f"added 10 normal images; now {NORMALS + 10} normal and 0 labelled anomalous"
    )
    assert result.stderr.splitlines()[-1] == "saved grown.safetensors"


def test_anomalies_stay_anomalous_after_an_update(grown: Path) -> None:
    anomaly("update", MODEL, "more", "--out", "grown.safetensors")

    rows = rows_of(anomaly("score", "incoming", "--model", "grown.safetensors", "--out", "-", "-q").stdout_bytes)

    assert {row["path"][-8:] for row in rows[:3]} == {"bad0.jpg", "bad1.jpg", "bad2.jpg"}


def test_the_old_normal_images_keep_their_deviations(grown: Path) -> None:
    anomaly("update", MODEL, "more", "--out", "grown.safetensors")

    old, new = (load_model(grown / name).calibration.normal_deviations for name in (MODEL, "grown.safetensors"))
    assert {tuple(row) for row in old} < {tuple(row) for row in new}


def test_one_image_is_enough_for_an_update_in_place(grown: Path) -> None:
    before = load_model(grown / MODEL).provenance
    (grown / MODEL).unlink()  # the fixture shares the file with other tests
    (grown / MODEL).write_bytes((grown / "normal").resolve().parent.joinpath(MODEL).read_bytes())

    result = anomaly("update", MODEL, "more/0.png", "-q")

    after = load_model(grown / MODEL).provenance
    assert (result.exit_code, result.stderr) == (0, "")
    assert after.images == before.images + 1
    assert after.training_set != before.training_set
    assert scores_of("more/0.png", MODEL) < [1.0]


def test_turned_copies_are_still_compared_with_the_surest_image(grown: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(stage1.SCRATCH_STEPS, Effort.QUICK, 2)
    anomaly("train", "normal", "--model", "scratch.safetensors", "--backbone", "scratch", "--effort", "quick")

    result = anomaly("update", "scratch.safetensors", "more", "--out", "grown.safetensors")

    assert result.exit_code == 0, result.stderr
    before, after = (
        load_model(grown / name).detector.scale(TURNED_SCALE).memory.prototypes
        for name in ("scratch.safetensors", "grown.safetensors")
    )
    assert after.shape == before.shape == (1, 4)
    assert float(after.norm()) <= float(before.norm())


def test_labelled_anomalies_are_added_and_new_normal_images_calibrate_alone(grown: Path) -> None:
    result = anomaly("update", MODEL, "more", "--anomalies", "known", "--out", "known.safetensors")
    again = anomaly("update", "known.safetensors", "more", "--anomalies", "known", "--out", "twice.safetensors")

    model, twice = (load_model(grown / name) for name in ("known.safetensors", "twice.safetensors"))
    assert (result.exit_code, again.exit_code) == (0, 0)
    assert model.provenance.anomalies == 4
    assert len(model.calibration.normal_deviations) == 10
    assert twice.detector.known_anomalies is not None
    assert len(twice.detector.known_anomalies.looks) == 8


def test_labels_of_a_review_are_added_as_what_they_say(grown: Path) -> None:
    labelled = [*(f"more/{i}.png,normal\n" for i in range(8)), "known/0.png,anomalous\n", "known/1.png,anomalous\n"]
    (grown / "labels.csv").write_text("path,label\n" + "".join(labelled))

    result = anomaly("update", MODEL, "--labels", "labels.csv", "--out", "reviewed.safetensors")
    both = anomaly(
        "update", MODEL, "fresh", "--labels", "labels.csv", "--anomalies", "known", "--out", "both.safetensors"
    )

    assert (result.exit_code, both.exit_code) == (0, 0)
    assert (
        f"added 8 normal images and 2 labelled anomalous; now {NORMALS + 8} normal and 2 labelled anomalous"
        in result.stderr
    )
    assert "added 11 normal images and 4 labelled anomalous" in both.stderr
    assert load_model(grown / "reviewed.safetensors").provenance.anomalies == 2


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (
            [MODEL],
            2,
            "error: name new normal images; with anomalous ones too, because they calibrate the updated model\n",
        ),
        (
            ["none.safetensors", "more"],
            1,
            "error: no model file at none.safetensors: make one with `anomaly train NORMAL_DIR`\n",
        ),
        ([MODEL, "--labels", "gone.csv"], 1, "error: cannot read gone.csv: No such file or directory\n"),
        (
            [MODEL, "--labels", "lost.csv"],
            1,
            "error: no such file or folder: lost/0.png\n",
        ),
        (
            [MODEL, "--labels", "bad.csv"],
            2,
            "error: name new normal images; with anomalous ones too, because they calibrate the updated model\n",
        ),
        ([MODEL, "more", "--out", "no/m.safetensors"], 1, "error: cannot write no/m.safetensors: no such folder: no\n"),
        (
            [MODEL, "more/0.png", "--anomalies", "known"],
            1,
            "error: 1 readable image, at least 8 are needed: each is measured against the others to learn how "
            "much they vary\n",
        ),
    ],
)  # fmt: skip
def test_mistakes_are_reported_in_one_line_and_leave_the_model(
    grown: Path, arguments: list[str], code: int, message: str
) -> None:
    before = (grown / MODEL).read_bytes()
    (grown / "lost.csv").write_text("path,label\nlost/0.png,normal\n")
    (grown / "bad.csv").write_text("path,label\nknown/0.png,anomalous\n")

    result = anomaly("update", *arguments)

    assert (result.exit_code, result.stderr) == (code, message)
    assert (grown / MODEL).read_bytes() == before
