"""What a resumed run takes from a journal, and whose journal it takes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from command_line import anomaly
from interrupted_runs import FILES, JOURNAL, TABLE, change, finished, interrupt, scored
from typer.testing import Result

from anomaly_cli.scoring import journal
from anomaly_cli.scoring import score as scoring
from anomaly_cli.scoring.journal import Journal


def test_a_changed_file_is_measured_again_and_a_touched_or_copied_one_is_not(
    uninterrupted: bytes, measured: list[str]
) -> None:
    interrupt(FILES)
    measured_before = finished()
    changed = Path("mine", "bad0.jpg")
    changed.write_bytes(Path("mine", "bad1.jpg").read_bytes())
    os.utime("mine/good1.png", (1, 1))
    shutil.copy("mine/good2.png", "copy.png")
    Path("copy.png").replace("mine/good2.png")

    resumed = scored("--resume")

    left = {path.name for path in Path("mine").rglob("*.*")} - {Path(name).name for name in measured_before}
    assert set(measured) == left | {"bad0.jpg"}
    assert resumed != uninterrupted
    assert resumed == scored()


def test_a_change_that_keeps_size_and_time_is_noticed(
    uninterrupted: bytes, measured: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = Path("mine", "good1.png")
    before = changed.stat()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal, "SETTLED_NS", -1)
        patch.setattr(Journal, "remove", lambda self: None)
        scored("--resume")
    measured.clear()
    content = bytearray(changed.read_bytes())
    content[-20] ^= 1
    changed.write_bytes(content)
    os.utime(changed, ns=(before.st_atime_ns, before.st_mtime_ns))

    resumed = scored("--resume")

    assert changed.stat().st_size == before.st_size
    assert measured == ["good1.png"]
    assert resumed == scored() != uninterrupted


def test_with_settled_time_stamps_no_file_is_even_read_again(
    uninterrupted: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "SETTLED_NS", -1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "remove", lambda self: None)
        scored("--resume")
    read: list[Path] = []
    monkeypatch.setattr(journal, "content_of", read.append)

    assert scored("--resume") == uninterrupted
    assert read == []


def test_other_flags_may_be_asked_for_when_resuming(uninterrupted: bytes, measured: list[str]) -> None:
    interrupt(5)

    resumed = scored("--resume", "--top", "2")

    assert len(measured) == FILES + 1 - 5
    assert resumed == scored("--top", "2")


# Whose journal it is


def test_a_journal_of_another_model_is_discarded_with_one_line(uninterrupted: bytes, measured: list[str]) -> None:
    interrupt(4)
    change('UPDATE journal SET identity = replace(identity, \'"model": \', \'"model": "other"\')')

    result = anomaly("score", "mine", "--resume")

    assert result.stderr.startswith(
        "warning: scores.csv.journal is of another model, version or machine: starting over, "
        "4 finished files given up\n"
        f"{FILES + 1} files: "
    )
    assert len(measured) == FILES + 1
    assert TABLE.read_bytes() == uninterrupted


def test_quality_that_was_not_measured_is_not_taken_from_a_journal(uninterrupted: bytes, measured: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "remove", lambda self: None)
        scored("--resume", "--no-quality")
    measured.clear()

    assert scored("--resume") == uninterrupted
    assert len(measured) == FILES + 1


def test_a_text_journal_of_an_earlier_version_is_given_up_with_one_line(here: Path) -> None:
    header = b'{"anomaly journal": 1, "columns": ["path"], "model": "one"}\n'
    JOURNAL.write_bytes(header + b'{"stamp": null, "content": "", "row": {}}\n' * 2 + b'{"stamp": nu')

    result = anomaly("score", "incoming", "--resume")

    assert result.stderr.startswith(
        "warning: scores.csv.journal is of another model, version or machine: starting over, "
        "2 finished files given up\n9 files: "
    )
    assert result.exit_code == 0
    assert not JOURNAL.exists()


@pytest.mark.parametrize("content", [b"my diary\n", b"my diary", b'{"anomaly": 1}\n'])
def test_a_file_of_that_name_that_is_no_journal_is_left_alone(here: Path, content: bytes) -> None:
    JOURNAL.write_bytes(content)

    result = anomaly("score", "incoming", "--resume")

    assert_error(result, "scores.csv.journal is not a journal of `anomaly score`; move it away")
    assert JOURNAL.read_bytes() == content


def test_a_second_run_with_the_same_table_is_refused_while_the_first_is_running(here: Path) -> None:
    with scoring.open_journal_of(TABLE, Path("anomaly.safetensors"), "cpu"):
        second = anomaly("score", "incoming", "--resume")
        other = anomaly("score", "incoming", "--resume", "--out", "other.csv", "-q")

    assert_error(second, "another run with --resume has scores.csv.journal open; wait for it or choose another --out")
    assert other.exit_code == 0
    assert anomaly("score", "incoming", "--resume", "-q").exit_code == 0


# Errors


def assert_error(result: Result, message: str, exit_code: int = 1) -> None:
    assert result.stderr == f"error: {message}\n"
    assert (result.stdout, result.exit_code) == ("", exit_code)


@pytest.mark.parametrize("out", ["-", "/dev/stdout"])
def test_a_table_on_stdout_has_no_place_for_a_journal(here: Path, out: str) -> None:
    result = anomaly("score", "incoming", "--resume", "--out", out)

    assert_error(result, "--resume keeps its journal beside the table: name a file with --out", 2)


@pytest.mark.parametrize("arguments", [["nowhere"], ["incoming", "-m", "gone.safetensors"]])
def test_a_run_that_finishes_no_file_leaves_no_journal(here: Path, arguments: list[str]) -> None:
    assert anomaly("score", *arguments, "--resume").exit_code == 1
    assert not JOURNAL.exists()


def test_a_journal_that_cannot_be_opened_is_one_line(here: Path) -> None:
    JOURNAL.mkdir()

    result = anomaly("score", "incoming", "--resume")

    assert_error(result, "cannot write scores.csv.journal: it is a folder")
