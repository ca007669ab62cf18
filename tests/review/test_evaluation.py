"""`anomaly evaluate`: figures against slow twins, intervals, confusion, masks, curves, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from command_line import anomaly
from PIL import Image
from shared_run import SIDE
from sklearn.metrics import average_precision_score, roc_auc_score

from anomaly_cli.errors import InputError
from anomaly_cli.images.own_output import is_own_output
from anomaly_cli.review import evaluation, evaluation_plots
from anomaly_cli.review.masks import find_masks

HEADER = "path,score,flagged,status,reason\n"


@pytest.fixture(autouse=True)
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fifty resamples show what a thousand do, in a twentieth of the time."""
    monkeypatch.setattr(evaluation, "DRAWS", 50)
    monkeypatch.setattr(evaluation, "PIXEL_DRAWS", 50)


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
        "image AUROC                 0.889   0.581 to 1.000",
    ]
    assert lines[-3:] == [
        "of 3 flagged, 2 anomalous: 67 % (95 %: 9 to 99 %)",
        "of 3 anomalous, 2 flagged: 67 % (95 %: 9 to 99 %); 1 missed",
        "of 3 normal, 1 flagged: 33 % (95 %: 1 to 91 %)",
    ]


def test_a_perfect_ranking_is_not_called_certain_and_no_flag_is_mentioned(table: Path) -> None:
    Path("p.csv").write_text(HEADER + "torn/0.png,3,false,ok,\ngood/2.png,1.5,false,ok,\n")

    result = anomaly("evaluate", "p.csv", "--labels", "folders")

    assert result.stderr.splitlines()[1:] == [
        "                            value   95 % interval",
        "image AUROC                 1.000   1.000 to 1.000",
        "average precision           1.000   1.000 to 1.000",
        "best F1 of any threshold    1.000   1.000 to 1.000",
        "false alarms at 95 % recall 0.000   0.000 to 0.000",
        "an interval of one value means that no resample changed the figure, not that it is certain",
        "the table flags none of them",
    ]
    confusion = evaluated("p.csv", "--labels", "folders")["confusion"]
    assert isinstance(confusion, dict)
    assert (confusion["precision"], confusion["recall"]["value"]) == (None, 0)


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
        "precision": {"value": 0.666667, "low": 0.094299, "high": 0.991596},
        "recall": {"value": 0.666667, "low": 0.094299, "high": 0.991596},
        "false_alarms": {"value": 0.333333, "low": 0.008404, "high": 0.905701},
    }
    assert (record["unreadable"], record["unlabelled"], record["unused"]) == (1, 0, 0)


def test_images_without_a_label_and_labels_without_an_image_are_counted(table: Path) -> None:
    Path("l.csv").write_text("path,label\ntorn/0.png,anomalous\ngood/5.png,normal\nelse.png,normal\n")

    result = anomaly("evaluate", "t.csv", "--labels", "l.csv")

    assert result.stderr.splitlines()[:4] == [
        "2 labelled images: 1 normal, 1 anomalous",
        "1 file unreadable, in no figure",
        "4 files without a label, in no figure",
        "1 label without a file in the table",
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
        (["t.csv", "--labels", "torn.csv"], "torn.csv: it labels no file of the table that can be read"),
        (
            ["t.csv", "--labels", "odd.csv"],
            "odd.csv is not a table of labels: row 2, good/2.png, has the label odd, not normal or anomalous",
        ),
        (
            ["t.csv", "--labels", "other.csv"],
            "other.csv: none of its labels, such as that of x.png, is of a file in the table, such as torn/0.png; "
            "paths count from the current folder or from that of the labels",
        ),
        (["t.csv", "--labels", "t.csv"], "t.csv is not a table of labels: column 'label' is missing"),
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
        (["t.csv", "--labels", "folders", "--masks", "."], ". holds the images themselves, not masks"),
        (
            ["t.csv", "--labels", "folders", "--masks", "truth", "--model", "none.safetensors"],
            "no model file at none.safetensors: make one with `anomaly train NORMAL_DIR`",
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
    Path("torn.csv").write_text("path,label\ntorn/6.png,bad\n")
    Path("odd.csv").write_text("path,label\ntorn/0.png,bad\ngood/2.png,odd\n")
    Path("other.csv").write_text("path,label\nx.png,bad\n")
    for folder in ("empty", "other", "torn", "truth"):
        Path(folder).mkdir()
    for name in ("other/elsewhere.png", "torn/0.png", "truth/0_mask.png"):
        Image.new("L", (4, 4)).save(name)

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


def test_masks_of_ones_are_read_and_black_or_missing_ones_counted(here: Path) -> None:
    anomaly("score", "incoming", "-q")
    bad = "".join(f"incoming/bad{i}.jpg,anomalous\n" for i in range(3))
    Path("l.csv").write_text(f"path,label\n{bad}incoming/good0.png,normal\n")
    Path("masks").mkdir()
    mask = np.zeros((SIDE, SIDE), np.uint8)
    Image.fromarray(mask).save("masks/bad1.png")
    mask[20:40, 20:40] = 1
    Image.fromarray(mask).save("masks/bad0.png")

    result = anomaly("evaluate", "scores.csv", "--labels", "l.csv", "--masks", "masks")

    assert result.exit_code == 0, result.stderr
    assert "2 anomalous images without a mask, in no figure of the maps" in result.stderr.splitlines()
    Image.fromarray(0 * mask).save("masks/bad0.png")
    black = anomaly("evaluate", "scores.csv", "--labels", "l.csv", "--masks", "masks", "-q")
    assert (black.stderr, black.exit_code) == ("error: masks: every mask is black\n", 1)


def test_masks_are_found_by_folder_and_name_and_two_for_one_image_are_refused(tmp_path: Path) -> None:
    names = ("torn/0_mask.png", "torn/0.png", "bent/0.png", "bent/1_mask.bmp", "bent/notes.txt")
    for name in (*names, "again/torn/0_mask.png"):
        (tmp_path / "masks" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "masks" / name).touch()
    (tmp_path / "masks/again").rename(tmp_path / "again")

    found = find_masks(tmp_path / "masks")

    assert found == {
        (folder, stem): tmp_path / "masks" / folder / file
        for folder, stem, file in (
            ("torn", "0", "0_mask.png"),
            ("bent", "0", "0.png"),
            ("bent", "1", "1_mask.bmp"),
        )
    }
    (tmp_path / "again").rename(tmp_path / "masks/again")
    with pytest.raises(
        InputError, match=r"torn/0_mask\.png and .*: which is the mask\? The same folder and name occur twice"
    ):
        find_masks(tmp_path / "masks")


def test_a_broken_mask_or_one_of_another_shape_is_one_line(here: Path) -> None:
    anomaly("score", "incoming", "-q")
    Path("l.csv").write_text("path,label\nincoming/bad0.jpg,anomalous\nincoming/good0.png,normal\n")
    Path("masks").mkdir()
    Path("masks/bad0.png").write_text("no mask")

    broken = anomaly("evaluate", "scores.csv", "--labels", "l.csv", "--masks", "masks", "-q")
    Image.new("L", (SIDE, SIDE // 2)).save("masks/bad0.png")
    flat = anomaly("evaluate", "scores.csv", "--labels", "l.csv", "--masks", "masks", "-q")

    assert broken.stderr.startswith("error: masks/bad0.png: not a readable mask: ")
    assert flat.stderr == "error: masks/bad0.png has 64 × 32 pixels, its image 64 × 64\n"
    assert broken.exit_code == flat.exit_code == 1


def test_curves_are_drawn_in_every_format(table: Path) -> None:
    for name in ("c.png", "c.svg", "c.pdf"):
        assert anomaly("evaluate", "t.csv", "--labels", "folders", "--curves", name, "-q").exit_code == 0

    with Image.open("c.png") as picture:
        assert picture.width > 1000
    assert is_own_output(Path("c.png"))
    assert b"<svg" in Path("c.svg").read_bytes()
    assert Path("c.pdf").read_bytes().startswith(b"%PDF")


def test_without_matplotlib_the_error_says_what_to_install(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation_plots, "find_spec", lambda _: None)

    result = anomaly("evaluate", "t.csv", "--labels", "folders", "--curves", "c.png")

    assert result.stderr == "error: --curves needs matplotlib: pip install 'anomaly-cli[plots]'\n"
    assert result.exit_code == 1
