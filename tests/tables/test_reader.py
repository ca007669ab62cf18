"""Reading tables: ours, those that a spreadsheet saved, and files that are none."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_tables import TEXT_FORMATS, scored, unreadable, written

from anomaly_cli.errors import InputError
from anomaly_cli.tables.formats import TableFormat
from anomaly_cli.tables.reader import files_of, read_paths


@pytest.mark.parametrize("format", TEXT_FORMATS)
def test_reading_gives_scored_files_in_rank_order_even_from_a_shuffled_table(
    tmp_path: Path, format: TableFormat
) -> None:
    lines = written(
        tmp_path, [scored("b", 0.5), scored("NA", 2.0), unreadable("c"), scored("a", 0.5)], format
    ).splitlines(keepends=True)
    head = 0 if format is TableFormat.JSONL else 1
    shuffled = tmp_path / f"shuffled.{format}"
    shuffled.write_bytes(b"".join(lines[:head] + lines[:head:-1] + lines[head : head + 1]))

    assert read_paths(shuffled) == [("NA", 2.0, True), ("a", 0.5, False), ("b", 0.5, False)]


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbfpath,score,flagged\r\na;b.png,1.5,TRUE\r\n",
        b'path;score;flagged\r\n"a;b.png";1,5;WAHR\r\n',
        "path\tscore\tflagged\r\na;b.png\t1.5\tVRAI\r\n".encode("utf-16"),
        b"\xfe\xff" + 'path;score;flagged\r\n"a;b.png";1,5E+0;1\r\n'.encode("utf-16-be"),
    ],
)
def test_a_table_saved_by_a_spreadsheet_still_reads(tmp_path: Path, content: bytes) -> None:
    table = tmp_path / "a.csv"
    table.write_bytes(content)

    assert read_paths(table) == [("a;b.png", 1.5, True)]


def test_files_are_looked_up_beside_the_table_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one/in/a.png", "two/in/b.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path / "one")
    table = Path("../two/t.csv")

    assert files_of(["in/a.png", "in/b.png", "in/gone.png"], table) == [
        Path("in/a.png"),
        Path("../two/in/b.png"),
        Path("in/gone.png"),
    ]
    with pytest.raises(InputError) as raised:
        files_of(["x.png", "y.png"], table)
    assert str(raised.value) == (
        "../two/t.csv: none of its files is found, such as x.png; relative paths count from the current folder or from "
        "that of the table"
    )


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.csv", b"", "column 'path' is missing"),
        ("a.csv", b"file,score\nb,1\n", "column 'path' is missing"),
        ("a.tsv", b"path\tscore\nb\t1\n", "column 'flagged' is missing"),
        ("a.jsonl", b'{"path": "b"}\n', "column 'score' is missing"),
        ("a.jsonl", b'{"path": "b", "score": 1, "flagged": true}\n[1]\n', "line 2 is not a JSON object"),
        ("a.jsonl", b"{no JSON\n", "line 1 is not a JSON object"),
        ("a.csv", b"path,score,flagged\nb,high,true\n", "could not convert string to float: 'high'"),
        ("a.csv", b"path,score,flagged\n,1,true\n", "a path is empty"),
        ("a.csv", b"path,score,flagged\na,1,yes\n", "flagged is yes, not true or false"),
        ("a.json", b'[{"path": "a"}, 1]\n', "no JSON array of objects"),
        ("a.csv.gz", b"\x1f\x8b and no more", "damaged gzip file"),
        ("a.csv", b"path,score,flagged\nb" + b"x" * 200_000, "field larger than field limit (131072)"),
    ],
)
def test_a_file_that_is_no_table_of_ours_is_named_with_the_reason(
    tmp_path: Path, name: str, content: bytes, problem: str
) -> None:
    table = tmp_path / name
    table.write_bytes(content)

    with pytest.raises(InputError) as raised:
        read_paths(table)

    assert str(raised.value) == f"{table} is not a table of `anomaly score`: {problem}"


def test_a_table_that_does_not_exist_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"^cannot read {tmp_path / 'a.csv'}: No such file or directory$"):
        read_paths(tmp_path / "a.csv")
