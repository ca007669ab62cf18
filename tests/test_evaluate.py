"""`anomaly evaluate`: figures against slow twins, intervals, confusion, masks, curves, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from command_line import anomaly
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics import average_precision_score, roc_auc_score

from anomaly_cli import curves
from anomaly_cli.evaluation import image_figures
from anomaly_cli.metrics import Counts, bootstrap, precision_at

REPEATABLE = settings(deadline=None, derandomize=True, max_examples=10)
HEADER = "path,score,flagged,status,reason\n"


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Six readable files and a broken one, in folders of their kind; the third is a false alarm."""
    monkeypatch.chdir(tmp_path)
    rows = [
        ("torn/0.png", "3", "true"),
        ("torn/1.png", "2", "true"),
        ("good/2.png", "1.5", "true"),
        ("torn/3.png", "1", "false"),
        ("good/4.png", "0.5", "false"),
        ("good/5.png", "0.4", "false"),
    ]
    lines = [f"{path},{score},{flagged},ok,\n" for path, score, flagged in rows]
    Path("t.csv").write_text(HEADER + "".join(lines) + "torn/6.png,,false,unreadable,empty file\n")
    return tmp_path


def evaluated(*arguments: str) -> dict[str, object]:
    result = anomaly("evaluate", *arguments, "-q", "--out", "-")
    assert result.exit_code == 0, result.stderr
    record: dict[str, object] = json.loads(result.stdout)
    return record


def test_what_is_printed(table: Path) -> None:
    result = anomaly("evaluate", "t.csv", "--labels", "folders")

    lines = result.stderr.splitlines()
    assert (result.stdout, result.exit_code) == ("", 0)
    assert lines[:4] == [
        "6 labelled images: 3 normal, 3 anomalous",
        "1 file unreadable, in no figure",
        "                            value   95 % interval",
        "image AUROC                 0.889   0.556 to 1.000",
    ]
    assert lines[-1] == "flagged: 3, of which 2 anomalous and 1 normal; not flagged: 1 anomalous and 2 normal"


def test_json_has_the_same_figures_as_scikit_learn(table: Path) -> None:
    record = evaluated("t.csv", "--labels", "folders")

    labels, scores = [1, 1, 0, 1, 0, 0], [3, 2, 1.5, 1, 0.5, 0.4]
    figures = record["figures"]
    assert isinstance(figures, dict)
    assert figures["image_auroc"]["value"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-6)
    assert figures["average_precision"]["value"] == pytest.approx(average_precision_score(labels, scores), abs=1e-6)
    assert figures["fpr_at_95_recall"]["value"] == pytest.approx(1 / 3, abs=1e-6)
    assert list(figures) == ["image_auroc", "average_precision", "f1_max", "fpr_at_95_recall"]
    assert record["confusion"] == {
        "flagged_anomalous": 2,
        "flagged_normal": 1,
        "missed_anomalous": 1,
        "passed_normal": 2,
    }
    assert (record["unreadable"], record["unlabelled"], record["unused"]) == (1, 0, 0)


def test_images_without_a_label_and_labels_without_an_image_are_counted(table: Path) -> None:
    Path("l.csv").write_text("path,label\ntorn/0.png,anomalous\ngood/5.png,normal\nelse.png,normal\n")

    result = anomaly("evaluate", "t.csv", "--labels", "l.csv")

    assert result.stderr.splitlines()[:4] == [
        "2 labelled images: 1 normal, 1 anomalous",
        "1 file unreadable, in no figure",
        "4 files without a label, in no figure",
        "1 file labelled but not in the table",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gone.csv", "--labels", "folders"], "cannot read gone.csv: No such file or directory"),
        (["t.csv", "--labels", "gone.csv"], "cannot read gone.csv: No such file or directory"),
        (
            ["t.csv", "--labels", "all.csv"],
            "all.csv: no readable image of the table is labelled normal, all are anomalous",
        ),
        (
            ["one.csv", "--labels", "folders"],
            "folders: no readable image of the table is labelled anomalous, all are normal "
            "(a folder called good or normal holds normal images)",
        ),
        (["t.csv", "--labels", "folders", "--masks", "nowhere"], "no such folder: nowhere"),
        (["t.csv", "--labels", "folders", "--masks", "empty"], "empty: no mask in it"),
        (
            ["t.csv", "--labels", "folders", "--masks", "other"],
            "other: no mask is called like an anomalous image, such as torn/0_mask.png",
        ),
        (
            ["t.csv", "--labels", "folders", "--curves", "c.docx"],
            "cannot write c.docx: curves are drawn as .png, .pdf, .svg",
        ),
        (["t.csv", "--labels", "folders", "-o", "no/e.json"], "cannot write no/e.json: no such folder: no"),
    ],
)
def test_what_the_user_can_fix_is_one_line(table: Path, arguments: list[str], message: str) -> None:
    Path("all.csv").write_text("path,label\n" + "".join(f"torn/{i}.png,bad\n" for i in (0, 1, 3)))
    Path("one.csv").write_text(HEADER + "good/1.png,0.5,false,ok,\n")
    Path("empty").mkdir()
    Path("other").mkdir()
    Image.new("L", (4, 4)).save("other/elsewhere.png")

    result = anomaly("evaluate", *arguments)

    assert (result.stderr, result.stdout, result.exit_code) == (f"error: {message}\n", "", 1)


def test_masks_locate_the_anomalies(here: Path) -> None:
    assert anomaly("score", "incoming", "-q").exit_code == 0
    Path("l.csv").write_text(
        "path,label\nincoming/bad0.jpg,anomalous\nincoming/good0.png,normal\nincoming/good1.png,normal\n"
    )
    with Image.open("incoming/bad0.jpg") as image:
        size = image.size
    Path("masks").mkdir()
    mask = np.zeros((size[1], size[0]), np.uint8)
    mask[size[1] // 4 : size[1] // 2, size[0] // 4 : size[0] // 2] = 255
    Image.fromarray(mask).save("masks/bad0_mask.png")

    record = evaluated("scores.csv", "--labels", "l.csv", "--masks", "masks")

    figures = record["figures"]
    assert isinstance(figures, dict)
    assert list(figures)[-2:] == ["pixel_auroc", "aupro"]
    for name in ("pixel_auroc", "aupro"):
        assert 0.5 < figures[name]["low"] <= figures[name]["value"] <= figures[name]["high"] <= 1, name
    assert record["without_mask"] == 0


def test_a_broken_mask_is_one_line(here: Path) -> None:
    anomaly("score", "incoming", "-q")
    Path("l.csv").write_text("path,label\nincoming/bad0.jpg,anomalous\nincoming/good0.png,normal\n")
    Path("masks").mkdir()
    Path("masks/bad0.png").write_text("no mask")

    result = anomaly("evaluate", "scores.csv", "--labels", "l.csv", "--masks", "masks", "-q")

    assert result.stderr.startswith("error: masks/bad0.png: not a readable mask: ")
    assert result.exit_code == 1


def test_curves_are_drawn_in_every_format(table: Path) -> None:
    for name in ("c.png", "c.svg", "c.pdf"):
        assert anomaly("evaluate", "t.csv", "--labels", "folders", "--curves", name, "-q").exit_code == 0

    with Image.open("c.png") as picture:
        assert picture.width > 1000
    assert b"precision" in Path("c.svg").read_bytes() or b"<svg" in Path("c.svg").read_bytes()
    assert Path("c.pdf").read_bytes().startswith(b"%PDF")


def test_without_matplotlib_the_error_says_what_to_install(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curves, "find_spec", lambda _: None)

    result = anomaly("evaluate", "t.csv", "--labels", "folders", "--curves", "c.png")

    assert result.stderr == "error: --curves needs matplotlib: pip install 'anomaly-cli[plots]'\n"
    assert result.exit_code == 1


# Figures


@given(st.integers(0, 2**20), st.integers(1, 12), st.integers(1, 5))
@REPEATABLE
def test_precision_at_k_is_the_mean_over_all_orders_of_ties(seed: int, count: int, levels: int) -> None:
    rng = np.random.default_rng(seed)
    labels, scores = rng.random(count) < 0.5, rng.integers(0, levels, count)
    k = int(rng.integers(1, count + 1))

    orders = [np.lexsort((rng.random(count), -scores)) for _ in range(1000)]
    slow = np.mean([labels[order[:k]].mean() for order in orders])

    assert precision_at(labels, scores, k) == pytest.approx(slow, abs=0.1)


def test_bootstrap_draws_each_class_in_its_own_number() -> None:
    labels = np.array([True] * 3 + [False] * 5)
    drawn: list[Counts] = []

    def measure(counts: Counts) -> list[float]:
        drawn.append(counts)
        return [0.0]

    bootstrap(measure, labels, 50)

    assert all((counts[:3].sum(), counts[3:].sum()) == (3, 5) for counts in drawn)
    assert len({counts.tobytes() for counts in drawn}) > 40


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    truth = 0.7602  # of two normal distributions one apart: Φ(1/√2)
    held = 0
    for _ in range(40):
        labels = np.repeat([True, False], 60)
        auroc = image_figures(labels, rng.normal(size=120) + labels, draws=100)["image_auroc"]
        held += auroc.low <= truth <= auroc.high

    assert 0.85 <= held / 40 <= 1
