"""Labels of people: which tables are read, how their paths meet those of a ranking, what is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pandas as pd
import pytest

from anomaly_cli.errors import InputError
from anomaly_cli.tables.labels import label_paths, labelled_files, read_labels


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`set` holds three empty images; the current folder is the one above."""
    monkeypatch.chdir(tmp_path)
    for name in ("good/a.png", "good/b.png", "torn/c.png"):
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).touch()
    return tmp_path


def labels(text: str, name: str = "labels.csv") -> str:
    Path(name).write_text(text, "utf-8")
    return name


def test_every_spelling_of_a_label_is_read_and_an_empty_one_is_none() -> None:
    table = labels("path,label\na,normal\nb,Good\nc,0\nd,0.0\ne,anomalous\nf,bad\ng,1\nh,1.0\ni,defect\nj,\n")

    known = read_labels(Path(table))

    assert known == dict(zip("abcdefghi", [False] * 4 + [True] * 5, strict=True))


def test_every_format_says_the_same() -> None:
    rows = [{"path": "a b", "label": "normal"}, {"path": "ü,\n", "label": "anomalous"}]
    frame = pd.DataFrame(rows)
    frame.to_csv("l.csv", index=False)
    frame.to_csv("l.tsv", index=False, sep="\t")
    frame.to_parquet("l.parquet")
    labels("".join(json.dumps(row) + "\n" for row in rows), "l.jsonl")

    for name in ("l.csv", "l.tsv", "l.parquet", "l.jsonl"):
        assert read_labels(Path(name)) == {"a b": False, "ü,\n": True}, name


def test_names_that_are_not_utf_8_are_kept() -> None:
    Path("labels.csv").write_bytes(b"path,label\ncaf\xe9.png,anomalous\n")

    assert read_labels(Path("labels.csv")) == {os.fsdecode(b"caf\xe9.png"): True}


def test_paths_meet_as_written_from_here_and_from_the_folder_of_the_labels(folder: Path) -> None:
    labels("path,label\ngood/a.png,normal\nset/good/b.png,normal\nelsewhere.png,anomalous\n", "set/labels.csv")
    rows = ["set/good/a.png", str(folder / "set/good/b.png"), "set/torn/c.png", "elsewhere.png"]

    matched = label_paths("set/labels.csv", rows)

    assert matched.anomalous == {rows[0]: False, rows[1]: False, "elsewhere.png": True}
    assert matched.unlabelled == ["set/torn/c.png"]
    assert matched.unused == 0


def test_labels_of_files_that_are_not_in_the_table_are_counted() -> None:
    table = labels("path,label\nset/good/a.png,normal\nset/torn/c.png,anomalous\ngone.png,anomalous\n")

    assert label_paths(table, ["./set/good/a.png"]).unused == 2


def test_folders_called_good_or_normal_hold_normal_images() -> None:
    rows = ["set/good/a.png", "x/Normal/b.png", "set/torn/c.png", "d.png"]

    assert label_paths("folders", rows).anomalous == dict(zip(rows, [False, False, True, True], strict=True))


def test_urls_stay_urls() -> None:
    table = labels("path,label\nhttp://host/a.png,normal\n", "set/labels.csv")

    assert label_paths(table, ["http://host/a.png"]).anomalous == {"http://host/a.png": False}
    assert [str(path) for path in labelled_files(Path(table))[0]] == ["http://host/a.png"]


def test_labelled_files_are_listed_once_where_they_lie() -> None:
    labels("path,label\ngood/a.png,normal\n./good/a.png,normal\ntorn/c.png,anomalous\n", "set/labels.csv")

    assert labelled_files(Path("set/labels.csv")) == ([Path("set/good/a.png")], [Path("set/torn/c.png")])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,kind\na,normal\n", "labels.csv is not a table of labels: column 'label' is missing"),
        (
            "path,label\na,normal\nb,odd\n",
            "labels.csv is not a table of labels: row 2, b, has the label odd, not normal or anomalous",
        ),
        (
            "path,label\na,normal\na,anomalous\n",
            "labels.csv is not a table of labels: a is labelled both normal and anomalous",
        ),
        (
            "path,label\nb,normal\nc,bad\n",
            "labels.csv: none of its labels, such as that of b, is of a file in the table, such as a.png; paths count "
            "from the current folder or from that of the labels",
        ),
        ("path,label\n", "labels.csv holds no label"),
    ],
)
def test_labels_that_cannot_be_used_are_one_line(text: str, message: str) -> None:
    with pytest.raises(InputError) as raised:
        label_paths(labels(text), ["a.png"])

    assert str(raised.value) == message


def test_two_names_of_one_file_must_agree(folder: Path) -> None:
    table = labels("path,label\nset/good/a.png,normal\n./set/good/a.png,anomalous\n")

    with pytest.raises(InputError) as raised:
        label_paths(table, ["set/good/a.png"])

    assert str(raised.value) == f"labels.csv labels {folder / 'set/good/a.png'} both normal and anomalous"


def test_a_file_that_is_missing_or_empty_of_labels_is_one_line() -> None:
    with pytest.raises(InputError) as missing:
        label_paths("gone.csv", ["a"])
    with pytest.raises(InputError) as empty:
        labelled_files(Path(labels("path,label\na,\n")))

    assert str(missing.value) == "cannot read gone.csv: No such file or directory"
    assert str(empty.value) == "labels.csv holds no label"
