"""`score --regions` and `heatmap --masks` on images: table, stream, resume, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from command_line import anomaly, rows_of
from PIL import Image

import anomaly_cli
from anomaly_cli.images.own_output import is_own_output


def regions_of(*options: str, name: str = "regions.csv") -> bytes:
    result = anomaly("score", "incoming", "--regions", name, "-q", *options)
    assert result.exit_code == 0, result.stderr
    return Path(name).read_bytes()


def test_the_table_counts_the_regions_and_the_second_one_lists_them(here: Path) -> None:
    regions = rows_of(regions_of())

    rows = rows_of(Path("scores.csv").read_bytes())
    assert list(rows[0])[-2:] == ["regions", "region_from"]
    assert {row["region_from"] for row in rows if row["score"]} <= {"map", "image"}
    assert sum(int(row["regions"]) for row in rows) == len(regions) > 0
    ranks = {row["path"]: int(row["rank"]) for row in rows}
    order = [(ranks[region["path"]], -float(region["peak"])) for region in regions]
    assert order == sorted(order)
    assert all(float(region["peak"]) >= float(region["mean"]) >= 1 for region in regions)
    assert {region["scale"] for region in regions} <= {"4", "8", "16", "image", "small"}


def test_masks_show_the_boxes_of_the_table_at_the_size_of_the_file(here: Path) -> None:
    regions = rows_of(regions_of("--region-threshold", "0.8", "--min-area", "150"))

    result = anomaly("heatmap", "incoming", "--masks", "m", "--region-threshold", "0.8", "--min-area", "150", "-q")

    assert result.exit_code == 0, result.stderr
    for row in rows_of(Path("scores.csv").read_bytes()):
        mask = Path("m", f"{row['path']}.png")
        pixels = np.asarray(Image.open(mask))
        expected = np.zeros_like(pixels)
        for region in (each for each in regions if each["path"] == row["path"]):
            x, y, w, h, area = (int(region[name]) for name in ("x", "y", "w", "h", "area"))
            expected[y : y + h, x : x + w] = True
            assert area >= 150
            assert pixels[y : y + h, x : x + w].any(axis=0).all()
            assert pixels[y : y + h, x : x + w].any(axis=1).all()
        assert pixels.dtype == bool
        assert pixels.shape == (int(row["height"]), int(row["width"]))
        assert not (pixels & ~expected).any()
        assert is_own_output(mask)


def test_a_smallest_area_changes_no_score(here: Path) -> None:
    regions_of()
    before = rows_of(Path("scores.csv").read_bytes())

    assert rows_of(regions_of("--min-area", "1000000")) == []

    after = rows_of(Path("scores.csv").read_bytes())
    assert [row | {"regions": "0"} for row in before] == after


def test_a_stream_writes_the_regions_of_each_file_as_it_goes(here: Path) -> None:
    expected = [json.loads(line) for line in regions_of(name="whole.jsonl").splitlines()]

    result = anomaly("score", "incoming", "--stream", "--regions", "live.jsonl", "--out", "rows.jsonl", "-q")

    assert result.exit_code == 0, result.stderr
    written = [json.loads(line) for line in Path("live.jsonl").read_bytes().splitlines()]
    rows = [json.loads(line) for line in Path("rows.jsonl").read_bytes().splitlines()]
    place = [row["path"] for row in rows].index
    assert sorted(written, key=lambda each: (place(each["path"]), each["region"])) == written
    assert sorted(map(str, written)) == sorted(map(str, expected))
    assert sum(row["regions"] or 0 for row in rows) == len(written)


def test_a_resumed_run_has_the_regions_of_the_run_before(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = regions_of(name="whole.coco.json")
    with monkeypatch.context() as patch:
        patch.setattr("anomaly_cli.scoring.journal.Journal.remove", lambda self: None)
        regions_of("--resume", name="first.coco.json")

    result = anomaly("score", "incoming", "--resume", "--regions", "second.coco.json")
    other = anomaly("score", "incoming", "--resume", "--regions", "third.csv")

    assert "resumed: 9 of 9 files were done already" in result.stderr
    assert "resumed" not in other.stderr
    assert Path("second.coco.json").read_bytes() == expected


def test_the_summary_says_how_many_regions_there_are_and_where(here: Path) -> None:
    result = anomaly("score", "incoming", "--regions", "regions.csv")

    count = len(rows_of(Path("regions.csv").read_bytes()))
    assert result.stderr.splitlines()[-1] == f"{count} regions: regions.csv"


def test_in_a_notebook_the_regions_are_a_frame_of_the_same_table(here: Path) -> None:
    expected = rows_of(regions_of())

    frame = anomaly_cli.regions("incoming", "anomaly.safetensors")

    assert frame["path"].tolist() == [row["path"] for row in expected]
    assert frame["peak"].tolist() == [float(row["peak"]) for row in expected]
    assert len(anomaly_cli.regions("incoming", "anomaly.safetensors", min_area=10**6)) == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--regions", "scores.csv"], "--out and --regions are one file, scores.csv: name two"),
        (["--regions", "-", "--out", "-"], "--out - and --regions - cannot both go to stdout"),
        (["--regions", "-", "--summary", "-"], "--summary - and --regions - cannot both go to stdout"),
        (["--region-threshold", "0"], "--region-threshold must be a number above 0, got 0"),
        (["--min-area", "-1"], "--min-area must be 0 pixels or more, got -1"),
        (
            ["--stream", "--regions", "r.csv"],
            "--stream writes JSON Lines: name a file with .jsonl for --regions, not r.csv",
        ),
        (
            ["--regions", "notes.csv"],
            "--regions notes.csv exists and is not a table of regions: remove notes.csv first, or name another file",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_before_any_work(here: Path, arguments: list[str], said: str) -> None:
    Path("notes.csv").write_text("path,mine\n")

    result = anomaly("score", "incoming", *arguments)

    assert (result.exit_code, result.stdout, result.stderr) == (2, "", f"error: {said}\n")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (
            ["--min-area", "9"],
            2,
            "--region-threshold and --min-area choose the regions of --masks; overlays outline all",
        ),
        (
            ["--masks", "heatmaps"],
            2,
            "--out and --masks would both write heatmaps/incoming/bad0.jpg.png: name two folders",
        ),
        (["--masks", "notes.csv"], 1, "cannot write notes.csv: not a folder: notes.csv"),
    ],
)
def test_masks_that_make_no_sense_are_refused(here: Path, arguments: list[str], code: int, said: str) -> None:
    Path("notes.csv").write_text("path,mine\n")

    result = anomaly("heatmap", "incoming", *arguments)

    assert (result.exit_code, result.stdout, result.stderr) == (code, "", f"error: {said}\n")
