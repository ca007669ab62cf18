"""`anomaly list`: the paths of a table alone, for `xargs`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import anomaly, close_the_reader_of_stdout, start
from typer.testing import Result

from anomaly_cli.tables.formats import TableFormat
from anomaly_cli.tables.row import Row
from anomaly_cli.tables.writer import Table

ODD = os.fsdecode(b'caf\xe9,"\n.png')  # not UTF-8, with all that a table must quote


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A table in every format: two flagged files, two that are not, two that cannot be read."""
    monkeypatch.chdir(tmp_path)
    rows = [
        Row(path="calm.png", score=0.5),
        Row(path="limit.png", score=1.0),
        Row(path="worst.png", score=3.0, flagged=True),
        Row(path=ODD, score=2.0, flagged=True),
        Row(path="cut.png", status="unreadable", reason="truncated"),
        Row(path="absent.png", status="unreadable", reason="no such file"),
    ]
    for table_format in TableFormat:
        Table(rows, ()).write(tmp_path / f"scores.{table_format}", table_format)
    return tmp_path / "scores.csv"


def names_in(result: Result) -> list[str]:
    assert (result.exit_code, result.stderr) == (0, "")
    return [os.fsdecode(name) for name in result.stdout_bytes.split(b"\0")[:-1]]


def assert_error(result: Result, message: str, exit_code: int) -> None:
    assert result.stderr == f"error: {message}\n"
    assert (result.stdout, result.exit_code) == ("", exit_code)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], ["worst.png", ODD, "limit.png", "calm.png"]),
        (["--flagged"], ["worst.png", ODD]),
        (["--above", "1"], ["worst.png", ODD, "limit.png"]),
        (["--above", "9"], []),
        (["--top", "1"], ["worst.png"]),
        (["--top", "99"], ["worst.png", ODD, "limit.png", "calm.png"]),
        (["--unreadable"], ["absent.png", "cut.png"]),
    ],
)
def test_each_option_chooses_its_paths_most_anomalous_first(
    table: Path, options: list[str], expected: list[str]
) -> None:
    assert names_in(anomaly("list", table, "-0", *options)) == expected


@pytest.mark.parametrize("table_format", ["csv", "tsv", "jsonl"])
def test_the_format_is_seen_from_the_content_of_a_pipe_or_of_a_file_without_a_suffix(
    table: Path, table_format: str
) -> None:
    content = Path(f"scores.{table_format}").read_bytes()
    Path("scores").write_bytes(content)

    for source in ("-", "scores"):
        assert names_in(anomaly("list", source, "-0", "--flagged", stdin=content)) == ["worst.png", ODD]


def test_parquet_is_seen_from_the_content_too(table: Path) -> None:
    content = Path("scores.parquet").read_bytes()

    listed = names_in(anomaly("list", "-", "-0", "--top", "1", stdin=content))

    assert listed == ["worst.png"]


def test_a_format_that_is_named_wins_over_the_content(table: Path) -> None:
    result = anomaly("list", table, "--format", "jsonl")

    assert_error(result, f"{table} is not a table of `anomaly score`: line 1 is not a JSON object", 1)


def test_a_path_a_line_is_the_default_and_a_line_break_in_a_name_is_warned_of(table: Path) -> None:
    result = anomaly("list", table, "--flagged")

    assert result.stdout_bytes == b"worst.png\n" + os.fsencode(ODD) + b"\n"
    assert result.stderr == "warning: 1 path holds a line break; use -0 with xargs -0\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--flagged", "--top", "3"], "give only one of --flagged, --top"),
        (["--above", "0", "--unreadable"], "give only one of --above, --unreadable"),
    ],
)
def test_two_choices_at_once_are_refused(table: Path, options: list[str], message: str) -> None:
    assert_error(anomaly("list", table, *options), message, 2)


@pytest.mark.parametrize(
    ("source", "content", "message"),
    [
        ("gone.csv", b"", "cannot read gone.csv: No such file or directory"),
        ("-", b"", "stdin is not a table of `anomaly score`: column 'path' is missing"),
        ("-", b"a,b\n1,2\n", "stdin is not a table of `anomaly score`: column 'path' is missing"),
        ("-", b'{"path": "a"\n', "stdin is not a table of `anomaly score`: line 1 is not a JSON object"),
        (
            "-",
            b"path,score,flagged\na,high,true\n",
            "stdin is not a table of `anomaly score`: could not convert string to float: 'high'",
        ),
    ],
)
def test_what_is_no_table_is_one_line(table: Path, source: str, content: bytes, message: str) -> None:
    assert_error(anomaly("list", source, stdin=content), message, 1)


def test_unreadable_files_need_the_column_that_tells_them(table: Path) -> None:
    result = anomaly("list", "-", "--unreadable", stdin=b"path,score,flagged\na,1,true\n")

    assert_error(result, "stdin is not a table of `anomaly score`: column 'status' is missing", 1)


def test_a_reader_that_goes_away_ends_it_quietly(table: Path) -> None:
    running = start("list", "scores.csv", "-0", hook=close_the_reader_of_stdout)

    assert (running.exit_code(), running.stderr) == (0, "")


def test_listing_a_csv_table_imports_nothing_heavy(table: Path) -> None:
    code = (
        "import atexit, sys; from anomaly_cli.cli import app; heavy = {'torch', 'pandas', 'numpy', 'PIL', 'scipy'};"
        "atexit.register(lambda: print(sorted(heavy & set(sys.modules)), file=sys.stderr));"
        "app(['list', 'scores.csv', '--top', '1'])"
    )

    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert (result.stdout, result.stderr) == ("worst.png\n", "[]\n")
