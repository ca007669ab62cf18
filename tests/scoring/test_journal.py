"""`score --resume`: killed anywhere, it resumes, measures nothing twice, and ends with the same bytes."""

from __future__ import annotations

import itertools
import os
import pkgutil
import random
import resource
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from command_line import anomaly, start, stop_at_the_rename
from interrupted_runs import FILES, JOURNAL, TABLE, change, finished, interrupt, scored

from anomaly_cli.scoring.journal import Journal

RANDOM_KILLS = 15


# A killed run


@pytest.mark.parametrize("rows", [0, 1, 4, FILES])
def test_a_killed_run_resumes_and_writes_the_same_bytes(uninterrupted: bytes, measured: list[str], rows: int) -> None:
    interrupt(rows)
    done = finished()

    result = anomaly("score", "mine", "--resume")

    assert len(done) == rows
    assert sorted([*measured, *(Path(name).name for name in done)]) == sorted(
        path.name for path in Path("mine").rglob("*.*")
    )
    assert TABLE.read_bytes() == uninterrupted
    assert not JOURNAL.exists()
    assert (f"resumed: {rows} of {FILES + 1} files were done already\n" in result.stderr) == (rows > 0)


def test_a_run_killed_again_and_again_ends_with_the_same_bytes(uninterrupted: bytes, measured: list[str]) -> None:
    for _ in range(3):
        interrupt(3)

    assert scored("--resume") == uninterrupted
    assert len(measured) == FILES + 1 - 9


def test_a_run_killed_with_its_table_complete_but_unnamed_measures_nothing_again(
    uninterrupted: bytes, measured: list[str]
) -> None:
    running = start("score", "mine", "--resume", "-q", hook=stop_at_the_rename)
    running.wait_until_reached()
    running.send(signal.SIGKILL)
    running.exit_code()

    assert scored("--resume") == uninterrupted
    assert measured == []


def test_a_damaged_row_costs_that_file_only(uninterrupted: bytes, measured: list[str]) -> None:
    interrupt(FILES)
    damaged = finished()[2:6]
    for path, row in zip(damaged, ("", "{", "[1]", '{"scales": [], "sc0re": 1}'), strict=True):
        change("UPDATE finished SET row = ? WHERE path = ?", row, os.fsencode(path))

    assert scored("--resume") == uninterrupted
    assert len(measured) == 1 + 4


# Killed anywhere


def kill_at(point: int | None) -> None:
    """Hook: kill this process at the n-th step of the package's own code, or count the steps into a file."""
    steps = itertools.count(1)

    def profile(frame: FrameType, event: str, argument: object) -> None:
        if frame.f_globals.get("__name__", "").startswith("anomaly_cli") and next(steps) == point:
            os.kill(os.getpid(), signal.SIGKILL)

    if point is None:
        remove = Journal.remove

        def last_step(self: Journal) -> None:
            remove(self)
            Path("steps").write_text(str(next(steps)))

        pytest.MonkeyPatch().setattr(Journal, "remove", last_step)
    sys.setprofile(profile)


def kill_around(target: str, call: int, when: str) -> None:
    """Hook: kill this process before or after a call of a function, named by its place and counted from 0."""
    calls = itertools.count()
    function = pkgutil.resolve_name(target)

    def mortal(*arguments: Any, **options: Any) -> Any:
        number = next(calls)
        if number == call and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*arguments, **options)
        if number == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    pytest.MonkeyPatch().setattr(target.replace(":", "."), mortal)


def tear_write(size: int) -> None:
    """Hook: kill this process in the middle of a write, as soon as a file would get larger than so many bytes."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)


def assert_resumes(hook: Callable[[], None], measured: list[str], whole: tuple[bytes, bytes]) -> None:
    """Kill a run by the hook, resume it in this process and compare with a run that was never killed."""
    options = ("--resume", "-q", "--summary", "verdict.json")
    running = start("score", "mine", *options, hook=hook)
    assert running.exit_code() in (-signal.SIGKILL, -signal.SIGXFSZ), running.stderr
    done = finished()
    measured.clear()

    result = anomaly("score", "mine", *options)

    assert (result.stderr, result.exit_code) == ("", 0)
    written = TABLE.read_bytes(), Path("verdict.json").read_bytes()
    for found, expected in zip(written, whole, strict=True):
        differing = set(found.splitlines()) ^ set(expected.splitlines())
        assert not differing, sorted(differing)
    assert written == whole
    assert sorted(measured) == sorted(path.name for path in Path("mine").rglob("*.*") if os.fspath(path) not in done)
    assert not list(Path().glob(f"{JOURNAL}*"))
    assert not list(Path().glob("*.partial"))
    TABLE.unlink()
    Path("verdict.json").unlink()


@pytest.fixture
def whole(uninterrupted: bytes) -> tuple[bytes, bytes]:
    """Table and verdict of a run that was never killed."""
    anomaly("score", "mine", "-q", "--summary", "verdict.json")
    contents = TABLE.read_bytes(), Path("verdict.json").read_bytes()
    TABLE.unlink()
    Path("verdict.json").unlink()
    return contents


STAGES = (
    "anomaly_cli.scoring.score:load_model",
    "anomaly_cli.scoring.score:open_journal",
    "anomaly_cli.scoring.score:collect",
    "anomaly_cli.scoring.journal:Journal.finished",
    "anomaly_cli.scoring.score:mark_copies",
    "anomaly_cli.scoring.score:flag_rows",
    "anomaly_cli.scoring.score:judge_batch",
    "anomaly_cli.tables.writer:Table.write",
    "anomaly_cli.scoring.batch_verdict:write_verdict",
    "anomaly_cli.scoring.journal:Journal.remove",
)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("stage", STAGES)
def test_a_run_killed_before_or_after_any_stage_is_resumed(
    whole: tuple[bytes, bytes], measured: list[str], stage: str, when: str
) -> None:
    assert_resumes(partial(kill_around, stage, 0, when), measured, whole)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("output", [0, 1])
def test_a_run_killed_around_the_renaming_of_an_output_is_resumed(
    whole: tuple[bytes, bytes], measured: list[str], output: int, when: str
) -> None:
    assert_resumes(partial(kill_around, "pathlib:Path.replace", output, when), measured, whole)


@pytest.mark.parametrize("size", [0, 600, 8700, 14000])
def test_a_run_killed_within_a_write_of_its_journal_is_resumed(
    whole: tuple[bytes, bytes], measured: list[str], size: int
) -> None:
    assert_resumes(partial(tear_write, size), measured, whole)


def test_a_run_killed_at_random_points_is_resumed_from_each(whole: tuple[bytes, bytes], measured: list[str]) -> None:
    counted = start("score", "mine", "--resume", "-q", "--summary", "verdict.json", hook=partial(kill_at, None))
    assert counted.exit_code() == 0, counted.stderr
    assert (TABLE.read_bytes(), Path("verdict.json").read_bytes()) == whole
    steps = int(Path("steps").read_text())
    assert steps > 10 * RANDOM_KILLS

    for point in random.Random(0).sample(range(1, steps), RANDOM_KILLS):
        assert_resumes(partial(kill_at, point), measured, whole)
