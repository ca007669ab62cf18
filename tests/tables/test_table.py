"""The ranking: its order, and its bytes in every format."""

from __future__ import annotations

import csv
import gzip
import itertools
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_tables import STRIDES, TEXT_FORMATS, scored, unreadable, written

from anomaly_cli.errors import ConfigError, InputError, OutputError
from anomaly_cli.tables.formats import TableFormat, format_of
from anomaly_cli.tables.reader import read_paths
from anomaly_cli.tables.row import Row, rank_rows
from anomaly_cli.tables.writer import Table

COLUMNS = [
    *("rank", "path", "score", "p_value", "q_value", "flagged", "status", "reason", "width", "height"),
    *(
        "region_x",
        "region_y",
        "region_w",
        "region_h",
        "region_fraction",
        "scale_4",
        "scale_image",
        "regions",
        "region_from",
    ),
]


def columns_of(table: bytes, *names: str) -> list[tuple[str, ...]]:
    reader = csv.DictReader(table.decode("utf-8", "surrogateescape").splitlines())
    return [tuple(record[name] for name in names) for record in reader]


def test_rows_are_ranked_by_falling_score_then_path_bytes_with_unreadable_ones_last() -> None:
    rows = [unreadable("b"), scored("é", 2.0), scored("z", 2.0), scored("low", 0.1), unreadable("a")]

    ranked = [row.path for row in rank_rows(rows)]

    assert ranked == ["z", "é", "low", "a", "b"]


def test_the_ranking_does_not_depend_on_the_order_of_the_input() -> None:
    rows = [scored("a", 1.0), scored("b", 1.0), scored("c", 3.0), unreadable("d")]

    rankings = {tuple(rank_rows(order)) for order in itertools.permutations(rows)}

    assert len(rankings) == 1


def test_scores_that_print_alike_are_ordered_by_path() -> None:
    rows = [scored("b", 1.00000002), scored("a", 1.00000001)]

    assert [row.path for row in rank_rows(rows)] == ["a", "b"]


@pytest.mark.parametrize(("status", "score"), [("ok", None), ("ok", math.nan), ("unreadable", 1.0)])
def test_a_row_whose_status_and_score_disagree_is_refused(status: Any, score: float | None) -> None:
    with pytest.raises(ValueError, match=f"exactly if its score is finite, got {status}, {score}$"):
        Row(path="a", status=status, score=score)


def test_the_frame_has_the_designed_columns_and_keeps_whole_numbers_whole() -> None:
    frame = Table([scored("a", 1.23456789), unreadable("b")], STRIDES).to_frame()

    assert list(frame.columns) == COLUMNS
    assert str(frame["rank"].dtype) == str(frame["region_w"].dtype) == "Int64"
    assert str(frame["flagged"].dtype) == "bool"
    assert frame["score"].tolist()[0] == 1.23457
    assert frame["rank"].isna().tolist() == [False, True]
    assert frame["scale_4"].isna().tolist() == [False, True]


def test_the_frame_of_no_rows_still_has_all_columns() -> None:
    frame = Table([], STRIDES).to_frame()

    assert list(frame.columns) == COLUMNS
    assert len(frame) == 0


def test_csv_prints_these_bytes(tmp_path: Path) -> None:
    rows = [unreadable("c.png"), scored("a b.png", 0.5), scored("b,1.png", 2.0, p_value=0.0000123456789)]

    table = written(tmp_path, rows, TableFormat.CSV)

    assert table.decode() == (
        ",".join(COLUMNS) + "\n"
        '1,"b,1.png",2.0,0.0000123457,0.02,true,ok,,640,480,1,2,3,4,0.25,0.5,0.125,2,map\n'
        "2,a b.png,0.5,0.01,0.02,false,ok,,640,480,1,2,3,4,0.25,0.5,0.125,2,map\n"
        ",c.png,,,,false,unreadable,is empty,,,,,,,,,,,\n"
    )


def test_tsv_separates_by_tabs_and_quotes_a_tab_in_a_name(tmp_path: Path) -> None:
    header, first, *_ = written(tmp_path, [scored("a\tb", 1.0)], TableFormat.TSV).decode().splitlines()

    assert header.split("\t") == COLUMNS
    assert first.startswith('1\t"a\tb"\t1.0\t')


def test_jsonl_holds_one_object_a_line_with_null_for_what_is_unknown(tmp_path: Path) -> None:
    table = written(tmp_path, [scored("é", 2.0), unreadable("b")], TableFormat.JSONL)

    first, second = [json.loads(line) for line in table.splitlines()]
    assert list(first) == list(second) == COLUMNS
    assert (first["rank"], first["path"], first["flagged"], first["width"]) == (1, "é", True, 640)
    assert (second["rank"], second["score"], second["scale_4"]) == (None, None, None)
    assert "é".encode() in table


@given(score=st.floats(min_value=0, max_value=1e30))
def test_printed_numbers_have_no_exponent_and_six_correct_digits(
    tmp_path_factory: pytest.TempPathFactory, score: float
) -> None:
    table = written(tmp_path_factory.getbasetemp(), [scored("a", score)], TableFormat.CSV)

    ((printed,),) = columns_of(table, "score")
    assert set(printed) <= set("0123456789.")
    assert float(printed) == float(f"{score:.5e}")


def test_small_and_large_scores_sort_as_plain_numbers(tmp_path: Path) -> None:
    rows = [scored("a", 1e-7), scored("b", 123456789.0), scored("c", 1e22)]

    table = written(tmp_path, rows, TableFormat.CSV)

    assert columns_of(table, "score") == [("10000000000000000000000",), ("123457000.0",), ("0.0000001",)]


def test_a_name_that_is_not_utf8_keeps_its_bytes_in_csv_and_is_an_escape_in_json(tmp_path: Path) -> None:
    rows = [scored(os.fsdecode(b"caf\xe9.png"), 1.0)]

    assert b"1,caf\xe9.png,1.0" in written(tmp_path, rows, TableFormat.CSV)
    assert b'"path": "caf\\udce9.png"' in written(tmp_path, rows, TableFormat.JSONL)


@pytest.mark.parametrize("format", TEXT_FORMATS)
@given(names=st.lists(st.binary(min_size=1).filter(lambda name: b"\0" not in name), unique=True))
def test_every_file_name_survives_writing_and_reading(
    tmp_path_factory: pytest.TempPathFactory, format: TableFormat, names: list[bytes]
) -> None:
    out = tmp_path_factory.getbasetemp() / f"names.{format}"
    rows = [scored(os.fsdecode(name), 1.0) for name in names]

    Table(rows, STRIDES).write(out, format)

    assert [os.fsencode(path) for path, _, _ in read_paths(out)] == sorted(names)


@pytest.mark.parametrize("format", TableFormat)
@given(
    scores=st.dictionaries(
        st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1),
        st.one_of(st.none(), st.floats(0, 1e30)),
        max_size=20,
    )
)
@settings(deadline=None)
def test_every_format_gives_back_paths_scores_and_flags(
    tmp_path_factory: pytest.TempPathFactory, format: TableFormat, scores: dict[str, float | None]
) -> None:
    out = tmp_path_factory.getbasetemp() / f"scores.{format}"
    rows = [unreadable(path) if score is None else scored(path, score) for path, score in scores.items()]

    Table(rows, STRIDES).write(out, format)
    back = {path: (score, flagged) for path, score, flagged in read_paths(out)}

    assert back == {path: (float(f"{score:.6g}"), score >= 1) for path, score in scores.items() if score is not None}


def test_a_line_break_of_either_kind_in_a_name_is_quoted(tmp_path: Path) -> None:
    table = written(tmp_path, [scored("a\nb", 2.0), scored("c\rd", 1.0)], TableFormat.CSV)

    assert b'1,"a\nb",2.0' in table
    assert b'2,"c\rd",1.0' in table
    assert b"\r\n" not in table


def test_out_none_writes_to_stdout(capfdbinary: pytest.CaptureFixture[bytes], tmp_path: Path) -> None:
    Table([scored("a", 1.0)], STRIDES).write(None, TableFormat.CSV)

    assert capfdbinary.readouterr().out == written(tmp_path, [scored("a", 1.0)], TableFormat.CSV)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.csv", TableFormat.CSV),
        ("a.TSV", TableFormat.TSV),
        ("a.jsonl", TableFormat.JSONL),
        ("a.ndjson", TableFormat.JSONL),
        ("a.json", TableFormat.JSON),
        ("a.csv.gz", TableFormat.CSV),
        ("a.JSONL.GZ", TableFormat.JSONL),
        ("csv", TableFormat.CSV),
    ],
)
def test_the_suffix_decides_the_format(name: str, expected: TableFormat) -> None:
    assert format_of(Path(name)) is expected


@pytest.mark.parametrize("name", ["s.xlsx", "s.txt", "s.csv.zip"])
def test_a_suffix_of_no_format_is_wrong_usage(name: str) -> None:
    with pytest.raises(ConfigError) as raised:
        format_of(Path(name))

    assert str(raised.value) == (
        f"{name}: no table has this suffix; use one of .csv, .tsv, .jsonl, .json, .parquet, .ndjson, with .gz behind "
        "it, or --format"
    )
    assert format_of(Path(name), TableFormat.CSV) is TableFormat.CSV


def test_parquet_is_not_compressed_again() -> None:
    with pytest.raises(ConfigError, match=r"^t\.parquet\.gz: parquet compresses by itself, leave out \.gz$"):
        format_of(Path("t.parquet.gz"))


@pytest.mark.parametrize("format", [TableFormat.CSV, TableFormat.JSONL, TableFormat.JSON])
def test_a_table_in_gzip_holds_the_same_and_has_the_same_bytes_again(tmp_path: Path, format: TableFormat) -> None:
    plain = written(tmp_path, [scored("a", 1.0), unreadable("b")], format)
    out = tmp_path / f"t.{format}.gz"

    contents = set()
    for _ in range(2):
        Table([scored("a", 1.0), unreadable("b")], STRIDES).write(out, format)
        contents.add(out.read_bytes())

    (content,) = contents
    assert gzip.decompress(content) == plain
    assert read_paths(out) == [("a", 1.0, True)]


def test_json_is_one_array_with_one_object_a_line(tmp_path: Path) -> None:
    table = written(tmp_path, [scored("é", 2.0), unreadable("b")], TableFormat.JSON)

    lines = written(tmp_path, [scored("é", 2.0), unreadable("b")], TableFormat.JSONL).splitlines()
    assert table == b"[\n" + lines[0] + b",\n" + lines[1] + b"\n]\n"
    assert json.loads(written(tmp_path, [], TableFormat.JSON)) == []


def test_a_chosen_format_wins_over_the_suffix_and_stdout_gets_csv() -> None:
    assert format_of(Path("a.csv"), TableFormat.JSONL) is TableFormat.JSONL
    assert format_of(None) is TableFormat.CSV


def test_parquet_without_pyarrow_is_refused_before_and_at_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    message = r"^parquet needs pyarrow: pip install 'anomaly-cli\[parquet\]'$"

    with pytest.raises(OutputError, match=message):
        format_of(tmp_path / "a.parquet")
    with pytest.raises(OutputError, match=message):
        Table([], STRIDES).write(tmp_path / "a", TableFormat.PARQUET)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "a").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=message):
        read_paths(tmp_path / "a")


def test_parquet_reads_back_what_was_written(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    out = tmp_path / "a.parquet"
    rows = [unreadable("c"), scored("b", 0.5), scored(os.fsdecode(b"\xff"), 2.0)]

    Table(rows, STRIDES).write(out, format_of(out))

    assert read_paths(out) == [("\\udcff", 2.0, True), ("b", 0.5, False)]


def test_dev_null_is_still_a_device_afterwards() -> None:
    Table([scored("a", 1.0)], STRIDES).write(Path(os.devnull), TableFormat.CSV)

    assert Path(os.devnull).is_char_device()


def test_a_full_disk_is_one_line() -> None:
    with pytest.raises(OutputError, match=r"^cannot write /dev/full: No space left on device$"):
        Table([scored("a", 1.0)], STRIDES).write(Path("/dev/full"), TableFormat.CSV)


def test_a_missing_folder_and_a_folder_as_target_are_one_line(tmp_path: Path) -> None:
    missing = tmp_path / "none" / "a.csv"

    with pytest.raises(OutputError, match=f"^cannot write {missing}: No such file or directory$"):
        Table([], STRIDES).write(missing, TableFormat.CSV)
    with pytest.raises(OutputError, match=f"^cannot write {tmp_path}: Is a directory$"):
        Table([], STRIDES).write(tmp_path, TableFormat.CSV)


def test_a_reader_that_goes_away_is_a_broken_pipe_and_no_output_error() -> None:
    code = (
        "from anomaly_cli.tables.formats import TableFormat\n"
        "from anomaly_cli.tables.row import Row\n"
        "from anomaly_cli.tables.writer import Table\n"
        "rows = [Row(path=str(n) * 1000, score=1.0, scales=()) for n in range(1000)]\n"
        "try:\n    Table(rows, ()).write(None, TableFormat.CSV)\n"
        "except BrokenPipeError:\n    import os; os._exit(7)\n"
    )

    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        process.stdout.close()
        code_of_exit = process.wait()

    assert code_of_exit == 7


def test_importing_the_module_loads_nothing_heavy() -> None:
    code = "import sys, anomaly_cli.tables.writer; print({'torch', 'pandas', 'numpy'} & set(sys.modules))"

    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert result.stdout.strip() == "set()"
