"""A table as the review page needs it: typed, ranked, with a threshold that separates the flagged."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anomaly_cli.errors import InputError
from anomaly_cli.tables.row import Value
from anomaly_cli.tables.score_table import ReportTable

HEADER = "path,score,flagged,status,reason,p_value,scale_8,note\n"


def table(tmp_path: Path, *rows: str) -> ReportTable:
    path = tmp_path / "t.csv"
    path.write_text(HEADER + "".join(row + "\n" for row in rows))
    return ReportTable.read(path)


def test_rows_are_ranked_typed_and_unreadable_ones_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a").touch()
    read = table(tmp_path, "b,1,false,ok,,0.5,2,x", "a,1,true,ok,,0.25,3.5,y", "z,,false,unreadable,empty file,,,")

    assert [str(path) for path in read.paths] == ["a", "b"]
    assert read.unreadable == [("z", "empty file")]
    assert read.columns == ["path", "status", "reason", "score", "flagged", "p_value", "scale_8"]
    assert read.readable[0] == ["a", "ok", "", 1, True, 0.25, 3.5]
    assert read.p_values == [0.25, 0.5]


def test_a_column_that_is_not_there_is_none(tmp_path: Path) -> None:
    assert table(tmp_path, "a,1,true,ok,,1,1,").column("region_x") == [None]


def test_rows_for_a_verdict_need_every_scale(tmp_path: Path) -> None:
    read = table(tmp_path, "a,1,true,ok,,0.25,3.5,")

    rows = read.rows(["8"])
    assert rows is not None
    assert (rows[0].path, rows[0].scales, rows[0].flagged) == ("a", (3.5,), True)
    assert read.rows(["8", "16"]) is None


@given(st.lists(st.integers(0, 40), min_size=1, max_size=12), st.integers(0, 12))
@settings(deadline=None, derandomize=True, max_examples=60)
def test_the_cut_separates_the_flagged_from_the_others(values: list[int], flagged: int) -> None:
    scores = sorted({value / 7 for value in values}, reverse=True)
    rows: list[list[Value]] = [["p", "ok", "", score, i < flagged] for i, score in enumerate(scores)]
    read = ReportTable("", ["path", "status", "reason", "score", "flagged"], rows, [])

    assert [score >= read.threshold for score in scores] == [i < flagged for i in range(len(scores))]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a,inf,true,ok,,1,1,", "score is inf"),
        (",1,true,ok,,1,1,", "a path is empty"),
        ("a,much,true,ok,,1,1,", "could not convert string to float: 'much'"),
    ],
)
def test_a_damaged_table_is_one_line(tmp_path: Path, row: str, message: str) -> None:
    with pytest.raises(InputError) as raised:
        table(tmp_path, row)

    assert str(raised.value) == f"{tmp_path / 't.csv'} is not a table of `anomaly score`: {message}"
