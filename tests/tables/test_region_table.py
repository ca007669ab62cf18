"""The table of regions: order, columns, every format, and COCO."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from anomaly_cli.errors import ConfigError
from anomaly_cli.outputs import Kind, is_of_kind
from anomaly_cli.tables.region_table import COLUMNS, RegionFile, RegionTable
from anomaly_cli.tables.row import RegionRow, Row

SQUARE = ((1.0, 2.0, 5.0, 2.0, 5.0, 8.0, 1.0, 8.0),)
FIRST = RegionRow(1, 2, 4, 6, 24, 0.0048, 3.123456789, 2.5, "8", SQUARE)
SECOND = RegionRow(50, 0, 10, 10, 60, 0.012, 1.5, 1.25, "16", ((50.0, 0.0, 60.0, 0.0, 60.0, 6.0, 50.0, 6.0),))
SIZE: dict[str, Any] = {"width": 100, "height": 50}
ROWS = [
    Row(path="calm.png", score=0.4, regions=0, **SIZE),
    Row(path="mild.png", score=1.2, regions=1, region_list=(SECOND,), **SIZE),
    Row(path="torn.png", status="unreadable", reason="truncated"),
    Row(path="worst, é.png", score=3.0, regions=2, region_list=(FIRST, SECOND), **SIZE),
]


def written(path: Path, rows: list[Row] = ROWS) -> bytes:
    RegionFile.of(path).write(rows)
    return path.read_bytes()


def test_the_most_anomalous_image_comes_first_then_its_highest_peak(tmp_path: Path) -> None:
    assert written(tmp_path / "regions.csv").decode() == (
        ",".join(COLUMNS) + "\n"
        '"worst, é.png",1,1,2,4,6,24,0.0048,3.12346,2.5,8\n'
        '"worst, é.png",2,50,0,10,10,60,0.012,1.5,1.25,16\n'
        "mild.png,1,50,0,10,10,60,0.012,1.5,1.25,16\n"
    )


@pytest.mark.parametrize("name", ["r", "r.tsv", "r.csv.gz", "r.jsonl", "r.json", "r.parquet", "r.coco.json"])
@pytest.mark.parametrize("rows", [ROWS, ROWS[:1]])
def test_a_file_of_regions_is_replaced_by_another_and_by_nothing_else(
    tmp_path: Path, name: str, rows: list[Row]
) -> None:
    written(tmp_path / name, rows)

    assert is_of_kind(tmp_path / name, RegionFile.of(tmp_path / name).kind)
    for kind in (Kind.TABLE, Kind.VERDICT, Kind.EVALUATION, Kind.MODEL, Kind.PAGE, Kind.JSON_LINES):
        assert not (tmp_path / name).read_bytes() or not is_of_kind(tmp_path / name, kind)


def test_parquet_and_the_frame_have_whole_numbers_whole(tmp_path: Path) -> None:
    written(tmp_path / "r.parquet")

    frame = pd.read_parquet(tmp_path / "r.parquet")

    assert list(frame.columns) == list(COLUMNS)
    assert frame["path"].tolist() == ["worst, é.png", "worst, é.png", "mild.png"]
    assert frame["scale"].tolist() == ["8", "16", "16"]
    assert {str(frame[name].dtype) for name in ("region", "x", "y", "w", "h", "area")} == {"Int64"}
    assert list(RegionTable([]).to_frame().columns) == list(COLUMNS)


def test_coco_has_every_readable_image_and_every_region_with_its_polygons(tmp_path: Path) -> None:
    document = json.loads(written(tmp_path / "r.coco.json"))

    assert set(document) == {"info", "licenses", "categories", "images", "annotations"}
    assert [(each["id"], each["file_name"], each["width"], each["height"]) for each in document["images"]] == [
        (1, "worst, é.png", 100, 50),
        (2, "mild.png", 100, 50),
        (3, "calm.png", 100, 50),
    ]
    assert document["annotations"][0] == {
        "id": 1,
        "image_id": 1,
        "category_id": 1,
        "bbox": [1, 2, 4, 6],
        "area": 24,
        "segmentation": [[1.0, 2.0, 5.0, 2.0, 5.0, 8.0, 1.0, 8.0]],
        "iscrowd": 0,
        "score": 3.12346,
        "scale": "8",
    }
    assert [(each["id"], each["image_id"]) for each in document["annotations"]] == [(1, 1), (2, 1), (3, 2)]
    assert document["categories"] == [{"id": 1, "name": "anomaly", "supercategory": ""}]


def test_a_name_that_is_not_utf_8_is_an_escape_in_coco(tmp_path: Path) -> None:
    content = written(tmp_path / "r.coco.json", [Row(path="caf\udce9.png", score=1.0, **SIZE)])

    assert json.loads(content)["images"][0]["file_name"] == "caf\udce9.png"


def test_a_row_with_regions_survives_the_journal_and_the_cluster() -> None:
    assert [Row.from_json(row.to_json()) for row in ROWS] == ROWS


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "r.xlsx",
            "r.xlsx: no table has this suffix; use one of .csv, .tsv, .jsonl, .json, .parquet, .ndjson, "
            "with .gz behind it, or .coco.json",
        ),
        ("r.coco.json.gz", "r.coco.json.gz: labelling tools read plain COCO files, leave out .gz"),
    ],
)
def test_a_suffix_of_no_format_is_refused(name: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RegionFile.of(Path(name))

    assert str(caught.value) == said
