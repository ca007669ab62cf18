"""`score --resume`: killed anywhere, it resumes, measures nothing twice, and ends with the same bytes."""

from __future__ import annotations

import itertools
import os
import pkgutil
import random
import resource
import shutil
import signal
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any

import pytest
from command_line import anomaly, start, stop_at_the_rename
from typer.testing import Result

from anomaly_cli.images import decode
from anomaly_cli.images.decode import LoadedImage
from anomaly_cli.scoring import journal, measure
from anomaly_cli.scoring import score as scoring
from anomaly_cli.scoring.journal import Journal
from anomaly_cli.tables.row import Row

FILES = 9  # in the folder `incoming`
RANDOM_KILLS = 15
TABLE = Path("scores.csv")
JOURNAL = Path("scores.csv.journal")
MODEL = {"model": "one"}


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were measured, in this process."""
    names: list[str] = []
    load = decode.load_image

    def counted(path: Path, image_size: int, **options: Any) -> LoadedImage:
        names.append(path.name)
        return load(path, image_size, **options)

    monkeypatch.setattr(measure, "load_image", counted)
    return names


@pytest.fixture
def uninterrupted(here: Path) -> bytes:
    """The table of a run without a journal, made and taken away; `mine` is a folder whose files may be changed."""
    shutil.copytree("incoming", "mine")
    Path("mine", "cut.png").write_bytes(Path("mine", "good0.png").read_bytes()[:200])
    return scored()


def scored(*options: str) -> bytes:
    result = anomaly("score", "mine", "-q", *options)
    assert result.exit_code == 0, result.stderr
    table = TABLE.read_bytes()
    TABLE.unlink()
    return table


def die_after(rows: int) -> None:
    """Hook: kill this process, as nothing can be prepared for, once so many files are entered in the journal."""
    add = Journal.add
    added: list[Row] = []

    def mortal(self: Journal, row: Row) -> None:
        if len(added) == rows:
            os.kill(os.getpid(), signal.SIGKILL)
        add(self, row)
        added.append(row)

    pytest.MonkeyPatch().setattr(Journal, "add", mortal)


def interrupt(rows: int) -> None:
    running = start("score", "mine", "--resume", "-q", hook=partial(die_after, rows))

    assert running.exit_code() == -signal.SIGKILL
    assert not TABLE.exists()


def finished() -> list[str]:
    """Paths in the journal, read from a copy: what a kill left half-written is for the next run to mend."""
    with TemporaryDirectory() as folder:
        for file in Path().glob(f"{JOURNAL}*"):
            shutil.copy(file, folder)
        with closing(sqlite3.connect(Path(folder, JOURNAL))) as database:
            if not database.execute("SELECT 1 FROM sqlite_master").fetchone():
                return []
            return [os.fsdecode(path) for (path,) in database.execute("SELECT path FROM finished")]


def change(statement: str, *values: object) -> None:
    """Change what the journal holds."""
    with closing(sqlite3.connect(JOURNAL)) as database, database:
        database.execute(statement, values)


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


# What is measured again


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
