"""`score --stream`: one row per file as soon as its name is known, in the order of arrival."""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from command_line import DEADLINE_S, anomaly, close_the_reader_of_stdout, rows_of, start
from typer.testing import Result

from anomaly_cli.commands import inputs as command_inputs
from anomaly_cli.commands.inputs import iter_paths
from anomaly_cli.scoring import stream
from anomaly_cli.scoring.stream import retry_while_changing
from anomaly_cli.tables.row import Row

UNREADABLE = Row(path="a", status="unreadable", reason="truncated")


def lines_of(content: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in content.splitlines()]


def assert_error(result: Result, message: str, exit_code: int) -> None:
    assert result.stderr == f"error: {message}\n"
    assert (result.stdout, result.exit_code) == ("", exit_code)


# What is written


def test_rows_have_the_scores_of_a_whole_run_but_neither_rank_nor_q_value(here: Path) -> None:
    anomaly("score", "incoming", "-q", "--no-quality")
    ranked = {row["path"]: row for row in rows_of(Path("scores.csv").read_bytes())}

    result = anomaly("score", "incoming", "--stream", "-q")

    rows = lines_of(result.stdout_bytes)
    assert [row["path"] for row in rows] == sorted(ranked)
    assert all(list(row) == list(ranked[row["path"]]) for row in rows)
    assert all(row["score"] == float(ranked[row["path"]]["score"]) for row in rows)
    assert all(row["rank"] is None and row["q_value"] is None and row["p_value"] > 0 for row in rows)
    assert [row["flagged"] for row in rows] == [row["score"] >= 1 for row in rows]
    assert (result.stderr, result.exit_code) == ("", 0)


def test_the_threshold_flags_and_the_summary_counts(here: Path) -> None:
    result = anomaly("score", "incoming/good0.png", "incoming/bad0.jpg", "--stream", "--threshold", "0")

    assert [row["flagged"] for row in lines_of(result.stdout_bytes)] == [True, True]
    assert result.stderr == "2 files: 2 flagged (score ≥ 0); 0 unreadable\n"


def test_names_are_taken_in_the_order_of_arrival_folders_searched_and_missing_files_are_rows(here: Path) -> None:
    odd = os.fsdecode(b"caf\xe9.png")
    shutil.copy("incoming/good1.png", odd)
    Path("names").write_bytes(b"incoming/good3.png\0\0gone.png\0incoming/deep\0" + os.fsencode(odd))

    result = anomaly("score", "--stream", "--files-from", "names", "-0", "-q", "--exclude", "*.jpg")

    rows = lines_of(result.stdout_bytes)
    assert [row["path"] for row in rows] == ["incoming/good3.png", "gone.png", "incoming/deep/good one.png", odd]
    assert [row["reason"] for row in rows] == ["", "no such file", "", ""]
    assert rows[1]["flagged"] is False
    assert result.exit_code == 0


def test_a_file_is_appended_to(here: Path) -> None:
    Path("log.jsonl").write_bytes(b'{"path": "earlier", "score": 1.0, "flagged": false}\n')

    for name in ("good0.png", "good1.png"):
        assert anomaly("score", f"incoming/{name}", "--stream", "-q", "-o", "log.jsonl").stdout == ""

    rows = lines_of(Path("log.jsonl").read_bytes())
    assert [row["path"] for row in rows] == ["earlier", "incoming/good0.png", "incoming/good1.png"]


# As it arrives


def stdin_from(name: str) -> None:
    """Hook: read stdin from a named pipe."""
    os.dup2(os.open(name, os.O_RDONLY), sys.stdin.fileno())


def test_a_row_is_written_before_the_next_name_arrives_and_the_end_of_names_ends_it(here: Path) -> None:
    os.mkfifo("names")
    running = start("score", "--stream", "--files-from", "-", hook=partial(stdin_from, "names"))

    with Path("names").open("wb", buffering=0) as names:
        for number in range(3):
            names.write(f"incoming/good{number}.png\n".encode())
            deadline = time.monotonic() + DEADLINE_S
            while Path("stdout").read_bytes().count(b"\n") <= number:
                assert time.monotonic() < deadline, running.stderr
                time.sleep(0.01)

    assert running.exit_code() == 0
    assert running.stderr == "3 files: 0 flagged (score ≥ 1); 0 unreadable\n"


def test_a_reader_that_goes_away_ends_it_quietly_though_more_names_may_come(here: Path) -> None:
    def hook_of(name: str) -> partial[None]:
        return partial(two_hooks, name)

    os.mkfifo("names")
    running = start("score", "--stream", "--files-from", "-", hook=hook_of("names"))

    with Path("names").open("wb", buffering=0) as names:
        names.write(b"incoming/good0.png\n")

        assert running.exit_code() == 0

    assert running.stderr == ""


def two_hooks(name: str) -> None:
    """Hook: both of the above."""
    stdin_from(name)
    close_the_reader_of_stdout()


@pytest.mark.parametrize("chunk", [1, 3, 1000])
def test_names_are_cut_right_wherever_a_read_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(command_inputs, "CHUNK_BYTES", chunk)
    (tmp_path / "names").write_bytes("a\n\nbé c\nlast".encode())

    assert list(iter_paths(str(tmp_path / "names"), null=False)) == [Path("a"), Path("bé c"), Path("last")]


# Half-written files


def test_a_file_that_is_still_being_written_is_waited_for(here: Path) -> None:
    content = Path("incoming/bad0.jpg").read_bytes()
    late = Path("late.jpg")
    late.write_bytes(content[:300])

    def write_the_rest() -> None:
        for start_of_part in range(300, len(content), 500):
            time.sleep(0.05)
            with late.open("ab") as file:
                file.write(content[start_of_part : start_of_part + 500])

    writer = threading.Thread(target=write_the_rest)
    writer.start()
    result = anomaly("score", "late.jpg", "--stream", "-q")
    writer.join()
    whole = anomaly("score", "incoming/bad0.jpg", "--stream", "-q")

    [row], [expected] = lines_of(result.stdout_bytes), lines_of(whole.stdout_bytes)
    assert row | {"path": ""} == expected | {"path": ""}


def test_a_broken_file_that_was_not_changed_lately_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", None)
    image = tmp_path / "a"
    image.touch()

    for moment in (time.time() - 5, time.time() + 1000):
        os.utime(image, (moment, moment))
        assert retry_while_changing(lambda path: UNREADABLE, image) is UNREADABLE

    for path in (tmp_path, tmp_path / "gone", Path("no\0name")):
        assert retry_while_changing(lambda path: UNREADABLE, path) is UNREADABLE


def test_a_file_that_keeps_changing_is_reported_after_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = tmp_path / "a"
    monkeypatch.setattr(stream, "PATIENCE_S", 0.3)
    monkeypatch.setattr(stream, "RETRY_S", 0.05)
    attempts = []

    def changing(path: Path) -> Row:
        path.touch()
        attempts.append(path)
        return UNREADABLE

    assert retry_while_changing(changing, image) is UNREADABLE
    assert 2 <= len(attempts) <= 8


# Errors


@pytest.mark.parametrize(
    "options",
    [
        ["--fdr", "0.1"],
        ["--top", "3"],
        ["--max-false-alarms", "1"],
        ["--summary", "v.json"],
        ["--fail-on", "drift"],
        ["--resume"],
    ],
)
def test_what_needs_the_whole_run_is_refused(here: Path, options: list[str]) -> None:
    result = anomaly("score", "incoming", "--stream", *options)

    assert_error(result, f"{options[0]} needs the whole run, --stream writes rows before that is known", 2)


def test_another_format_is_refused_and_json_lines_may_be_named(here: Path) -> None:
    refused = anomaly("score", "incoming", "--stream", "--format", "csv")
    named = anomaly("score", "incoming/good0.png", "--stream", "--format", "jsonl", "-q")

    assert_error(refused, "--stream writes JSON Lines, not csv", 2)
    assert named.exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "message", "exit_code"),
    [
        (["nowhere"], "no such file or folder: nowhere", 1),
        ([], "name a folder or file to read, or use --files-from", 2),
        (["incoming", "-0"], "-0 goes with --files-from", 2),
        (["--files-from", "gone"], "cannot read gone: No such file or directory", 1),
        (["--files-from", "incoming"], "cannot read incoming: Is a directory", 1),
        (["incoming", "-o", "no/file.jsonl"], "cannot write no/file.jsonl: no such folder: no", 1),
        (["incoming", "--threshold", "-1"], "--threshold must be 0 or more, got -1.0", 2),
        (["incoming/good0.png", "-o", "/dev/full", "-q"], "cannot write /dev/full: No space left on device", 1),
    ],
)
def test_what_the_user_can_fix_is_one_line(here: Path, arguments: list[str], message: str, exit_code: int) -> None:
    assert_error(anomaly("score", "--stream", *arguments), message, exit_code)
