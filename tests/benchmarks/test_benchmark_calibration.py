"""The benchmark of the statistics: it runs, continues where it stopped, and its figures are those of its rows."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks.accuracy import calibration
from benchmarks.accuracy.textures import write_textures

SPLITS = ("--normals", "24", "--fresh", "20", "--image-size", "64", "--prototypes", "30")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Textures in MVTec layout; those of another seed and size stand for anomalies."""
    folder = tmp_path / "texture"
    write_textures(folder / "train" / "good", 40, 64, seed=0)
    write_textures(folder / "test" / "good", 8, 64, seed=1)
    write_textures(folder / "test" / "bad", 6, 16, seed=2)
    return folder


def run(monkeypatch: pytest.MonkeyPatch, *options: str | Path) -> None:
    monkeypatch.setattr(sys, "argv", ["calibration", *map(str, options)])
    calibration.main()


def test_splits_are_measured_once_and_continued(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.csv"

    run(monkeypatch, "--data", data, "--splits", "1", "--out", out, *SPLITS)
    first = out.read_text().splitlines()
    run(monkeypatch, "--data", data, "--splits", "2", "--out", out, *SPLITS)

    rows = pd.read_csv(out)
    assert out.read_text().splitlines()[:2] == first
    assert rows["split"].tolist() == [0, 1]
    assert rows.filter(like="p_below").nunique().max() == 2
    assert "2 splits; percent, mean ± standard error" in capsys.readouterr().out


def test_the_summary_is_mean_and_standard_error_in_percent_and_how_often_drift_fires() -> None:
    rows = pd.DataFrame(
        {
            "set": ["a", "a", "b", "b"],
            "split": [0, 1, 0, 1],
            "normals": 100,
            "fresh": 150,
            "fdr_0.05": [0.0, 0.1, 0.02, 0.02],
            "drift_0.00": [0.5, 0.01, 0.02, 1.0],
        }
    )

    table = calibration.summary(rows).to_dict()

    assert table["a"]["fdr_0.05"] == "5.0 ± 5.0"
    assert table["b"]["fdr_0.05"] == "2.0 ± 0.0"
    assert table["all"]["fdr_0.05"] == f"3.5 ± {100 * np.std([0, 0.1, 0.02, 0.02], ddof=1) / 2:.1f}"
    assert [table[name]["drift_0.00"] for name in ("a", "b", "all")] == ["50.0 ± 50.0", "0.0 ± 0.0", "25.0 ± 25.0"]


def test_the_distance_from_uniform_is_the_largest_over_the_grid() -> None:
    rows = pd.DataFrame({"set": ["a", "a"]})
    for level in calibration.GRID:
        rows[f"p_below_{level:.2f}"] = [level, level]
    rows["p_below_0.30"] = [0.3, 0.2]
    rows["p_below_0.70"] = [0.9, 0.6]

    assert calibration.distance_from_uniform(rows)["a"] == pytest.approx(0.05)


def test_the_plot_is_a_picture(tmp_path: Path) -> None:
    rows = pd.DataFrame({"set": ["a", "a"], "split": [0, 1]})
    for level in calibration.GRID:
        rows[f"p_below_{level:.2f}"] = [level, level]
    for level in calibration.NOMINAL:
        rows[f"fdr_{level:.2f}"] = [level, 0.0]

    calibration.plot(rows, tmp_path / "plot.png")

    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
