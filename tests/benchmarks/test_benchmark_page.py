"""The page of the benchmarks is made from their tables."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks.page import write_report
from benchmarks.page.figures import grid, markdown
from benchmarks.page.localisation import REGION_FIGURES

AUROC = "image_auroc"


def test_a_grid_averages_seeds_then_the_sets_that_have_every_row() -> None:
    results = pd.DataFrame(
        {
            "set": ["a", "a", "b", "a", "a"],
            "seed": [0, 1, 0, 0, 1],
            "rate": [0.0, 0.0, 0.0, 0.1, 0.1],
            AUROC: [0.5, 0.7, 0.9, 0.6, 0.6],
        }
    )

    figures = grid(results, ["rate"], AUROC)

    assert figures.mean.to_numpy() == pytest.approx(np.array([[0.6, 0.9, 0.6], [0.6, np.nan, 0.6]]), nan_ok=True)
    assert figures.spread["a"].tolist() == pytest.approx([np.std([0.5, 0.7], ddof=1), 0.0])
    assert list(figures.texts(100, 1).to_numpy()[0]) == ["60.0 ± 14.1", "90.0", "60.0 ± 14.1"]
    assert list(figures.texts(100, 1).to_numpy()[1]) == ["60.0 ± 0.0", "–", "60.0 ± 0.0"]


def test_where_most_sets_lack_a_row_that_row_has_no_mean() -> None:
    results = pd.DataFrame({"set": ["a", "b", "c", "a"], "seed": 0, "rate": [0, 0, 0, 1], AUROC: [0.3, 0.6, 0.9, 0.4]})

    assert grid(results, ["rate"], AUROC).mean["mean"].tolist() == pytest.approx([0.6, np.nan], nan_ok=True)


def test_long_rows_name_condition_set_and_figure() -> None:
    results = pd.DataFrame({"set": ["a"], "seed": [0], "part": ["x"], "variant": ["y"], AUROC: [0.5]})

    rows = grid(results, ["part", "variant"], AUROC).rows("ablation", AUROC)

    assert rows[["table", "condition", "set", "figure", "mean", "seeds"]].to_numpy().tolist() == [
        ["ablation", "x / y", "a", AUROC, 0.5, 1],
        ["ablation", "x / y", "mean", AUROC, 0.5, 1],
    ]


def test_markdown_has_a_column_for_each_level_of_the_index() -> None:
    index = pd.MultiIndex.from_tuples([("p", "q"), ("p", "r")])

    text = markdown(pd.DataFrame({"set": ["1", "2"]}, index=index), ["part", "variant"])

    assert text == "| part | variant | set |\n| --- | --- | --- |\n| p | q | 1 |\n| p | r | 2 |"


def write_tables(folder: Path) -> None:
    """Write every table that the page knows, with made-up figures."""
    rng = np.random.default_rng(0)
    conditions: dict[str, list[dict[str, object]]] = {
        "peers": [{"method": name} for name in write_report.METHOD_NAMES],
        "margins": [{"method": name} for name in ("ours", "prototypes")],
        "patchcore": [{"method": name} for name in ("ours", "anomalib_patchcore")],
        "further": [{"method": name} for name in ("ours", "prototypes")],
        "backbones": [{"backbone": name, "image_size": 256} for name in ("embedded", "other")],
        "style": [{"appearance": change, "method": "ours"} for change in ("blur", "noise")],
        "unbalanced": [
            {"setting": setting, "tested": tested, "rate": rate}
            for setting, tested in (("same types", "seen"), ("one type", "seen"), ("one type", "unseen"))
            for rate in (0.0, 0.05)
        ],
        "labels": [
            {"labelled": 3, "seen_before": 0.8, "seen": 0.9, "unseen_before": 0.8, "unseen": 0.7},
            {"labelled": 4, "mislabelled_before": 0.8, "mislabelled": 0.8},
        ],
        "contamination": [{"rate": rate} for rate in (0.0, 0.1)],
        "few_normals": [{"count": count, "method": "ours"} for count in ("8", "all")],
        "regions": [dict.fromkeys(REGION_FIGURES, 0.5)],
        "small_defects": [
            {"pictures": "textures", "side": 3000, "defect_px": 12, "smallest_defect": told, "s_a_megapixel": 0.4}
            for told in (0, 12)
        ],
        "time_stamps": [{"run": name} for name in ("plain", "stamps, roi")],
        "objects_embedded": [{}],
        "objects_scratch": [{}],
        "ablation": [{"part": "–", "variant": "product"}, {"part": "scales", "variant": "one"}],
        "ablation_photographs": [{"part": "–", "variant": "product"}, {"part": "fusion", "variant": "one"}],
        "ablation_scratch": [{"part": "learned", "variant": "scratch"}, {"part": "learned", "variant": "one"}],
    }
    conditions["unbalanced_scratch"] = conditions["unbalanced"]
    for table, each in conditions.items():
        sets = ["cifar10/cat", "cifar10/dog"] if table.startswith("objects") else ["screw", "tile"]
        rows = [
            {"set": name, "seed": seed, **condition, AUROC: rng.uniform(0.8, 1), "train_s": 10.0}
            for name in sets
            for seed in (0, 1)
            for condition in each
        ]
        frame = pd.DataFrame(rows).assign(classifier_auroc=0.7, ap_audit=0.5, aupro=0.9, peak_mb=900.0)
        frame.to_csv(folder / f"{table}.csv", index=False)
        facts = {
            "command": f"python -m benchmarks.{table}",
            "cores": 2,
            "versions": {"torch": "2.9", "python": "3.12"},
        }
        (folder / f"{table}.json").write_text(json.dumps(facts))


def test_the_page_has_every_table_its_command_and_small_plots(tmp_path: Path) -> None:
    write_tables(tmp_path)

    missing = write_report.write(tmp_path, tmp_path / "page.md")

    page = (tmp_path / "page.md").read_text("utf-8")
    assert missing == []
    for name, (title, _) in write_report.SECTIONS.items():
        assert f"## {title}\n\n    python -m benchmarks.{name}\n\nCores: 2, torch 2.9, Python 3.12." in page
    assert "| method | screw | tile | mean |\n| --- | --- | --- | --- |\n| **ours** | " in page
    assert (
        "| image size | backbone | screw | tile | mean |\n| --- | --- | --- | --- | --- |\n| 256 | embedded | " in page
    )
    assert "Our mean error (1 − image AUROC) is" in page
    assert "| of these, the region of the table touches a defect, % | 50.0 ± 0.0 | 50.0 ± 0.0 | 50.0 ± 0.0 |" in page
    assert "| textures | 3000 | 12 | 0 | " in page
    assert "| 3 | with labels | 70.0 ± 0.0 | 70.0 ± 0.0 | 70.0 ± 0.0 |" in page
    assert "4 cases: change -10.0 in the mean, -10.0 at worst; 4 fall by more than 1.5." in page
    pictures = sorted(tmp_path.glob("benchmarks-*.png"))
    assert [path.name for path in pictures if f"]({path.name})" in page] == [path.name for path in pictures]
    assert len(pictures) == 4
    assert max(path.stat().st_size for path in pictures) < 60_000
    figures = pd.read_csv(tmp_path / "page.csv")
    assert set(figures["table"]) >= {"peers", "style", "contamination", "ablation", "photographs", "from scratch"}
    assert "unbalanced from scratch / one type / unseen" in set(figures["table"])


def test_what_was_noted_of_a_table_stands_beside_its_command(tmp_path: Path) -> None:
    write_tables(tmp_path)
    facts = tmp_path / "style.json"
    facts.write_text(json.dumps(json.loads(facts.read_text()) | {"note": "Of an older version."}))

    write_report.write(tmp_path, tmp_path / "page.md")

    page = (tmp_path / "page.md").read_text("utf-8")
    assert page.count("Python 3.12. Of an older version.\n") == 1


def test_the_error_is_compared_with_each_method() -> None:
    names = write_report.METHOD_NAMES
    means = pd.Series({names["ours"]: 0.9, names["lof"]: 0.8, names["gaussian"]: 0.92})

    assert write_report.errors_against(means) == (
        "Our mean error (1 − image AUROC) is 10.0 %; against that -50 % of local outlier factor, "
        "+25 % of Gaussian a position."
    )


def test_a_table_that_is_not_there_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tables(tmp_path)
    for name in ("peers", "ablation"):
        (tmp_path / f"{name}.csv").unlink()
    out = tmp_path / "page.md"
    monkeypatch.setattr(sys, "argv", ["write_report", "--results", str(tmp_path), "--out", str(out)])

    write_report.main()

    assert capsys.readouterr().out == f"wrote {out}; left out, for lack of a table: peers, ablation\n"
    assert "Against other methods" not in out.read_text("utf-8")


def test_no_table_at_all_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"no table in {tmp_path}: run `make bench DATA=FOLDER` first"):
        write_report.write(tmp_path, tmp_path / "page.md")
