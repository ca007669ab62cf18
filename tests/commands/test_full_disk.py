"""Outputs that cannot be written, on real processes: full disk, closed streams, forbidden folders, two runs at once."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import struct
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from command_line import REACHED, Running, anomaly, rows_of, start, stop_at_the_rename
from shared_run import SETTINGS

OLD = "path,score,flagged\n"  # a table that may be replaced
SMALL = 100  # bytes that a file may have
DAC_OVERRIDE, DAC_READ_SEARCH = 1, 2  # of root's capabilities: to ignore the permissions of files
WITHOUT_MODEL = ("train", "normal", *SETTINGS, "--seed", "1", "-q")


def full_disk() -> None:
    """Hook: as on a full disk, no file can grow."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (SMALL, SMALL))


def obey_permissions() -> None:
    """Hook: give up root's right to write where the permissions forbid it."""
    if os.geteuid() != 0:
        return
    header, none = struct.pack("<Ii", 0x20080522, 0), bytes(24)
    if ctypes.CDLL(None, use_errno=True).capset(header, none):
        raise OSError(ctypes.get_errno(), "capset")


def full(descriptor: int) -> None:
    """Hook: redirect a stream to a device that is always full."""
    os.dup2(os.open("/dev/full", os.O_WRONLY), descriptor)


def close_stream(name: str) -> None:
    """Hook: what Python makes of a stream that the shell closed with `>&-`."""
    os.close({"stdout": 1, "stderr": 2}[name])
    setattr(sys, name, None)


def ended(*arguments: str, hook: Callable[[], None]) -> tuple[int | None, str]:
    running = start(*arguments, hook=hook)
    return running.exit_code(), running.stderr


def test_a_table_that_does_not_fit_on_the_disk_is_one_line_and_the_old_one_stays(here: Path) -> None:
    Path("scores.csv").write_text(OLD)

    code, said = ended("score", "incoming", "-q", hook=full_disk)

    assert (code, said) == (1, "error: cannot write scores.csv: File too large\n")
    assert Path("scores.csv").read_text() == OLD
    assert not list(here.glob("*.partial"))


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (WITHOUT_MODEL, "anomaly.safetensors"),
        (("heatmap", "incoming/bad0.jpg", "-q"), "heatmaps/incoming/bad0.jpg.png"),
        (("score", "incoming", "-q", "--resume"), "scores.csv.journal"),
        (("score", "incoming", "-q", "--out", "t.jsonl"), "t.jsonl"),
        (("score", "incoming", "-q", "--out", "t.parquet"), "t.parquet"),
    ],
)
def test_every_output_on_a_full_disk_is_one_line_and_no_half_file(
    here: Path, arguments: tuple[str, ...], name: str
) -> None:
    before = {path: path.read_bytes() for path in here.iterdir() if path.is_file()}

    code, said = ended(*arguments, hook=full_disk)

    assert code == 1
    assert said in (f"error: cannot write {name}: {why}\n" for why in ("File too large", "disk I/O error"))
    left = {path.name for path in here.rglob("*") if path.is_file() and "incoming" not in os.fspath(path.parent)}
    assert {path.read_bytes() for path in before} == set(before.values())
    assert not {each for each in left if each.endswith(".partial")}


@pytest.mark.parametrize(
    "arguments",
    [("score", "incoming", "-q", "-o", "-"), ("info",), ("list", "t.csv"), ("score", "incoming", "--stream")],
)
def test_a_full_disk_behind_stdout_is_one_line(here: Path, arguments: tuple[str, ...]) -> None:
    Path("t.csv").write_text("path,score,flagged\na.png,1,true\n")

    assert ended(*arguments, hook=partial(full, 1)) == (1, "error: cannot write stdout: No space left on device\n")


def test_messages_that_nobody_can_read_do_not_cost_the_table(here: Path) -> None:
    for name, hook in (("full", partial(full, 2)), ("closed", partial(close_stream, "stderr"))):
        code, _ = ended("score", "incoming", "--out", f"{name}.csv", hook=hook)

        assert code == 0
        assert len(rows_of(Path(f"{name}.csv").read_bytes())) == 9


def test_a_closed_stdout_is_one_line(here: Path) -> None:
    hook = partial(close_stream, "stdout")

    assert ended("info", hook=hook) == (1, "error: cannot write stdout: Bad file descriptor\n")
    assert ended("score", "incoming", "-q", hook=hook) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (("score", "incoming", "-q", "--out", "closed/t.csv"), "closed/t.csv"),
        (("score", "incoming", "-q", "--summary", "closed/v.json"), "closed/v.json"),
        (("train", "normal", *SETTINGS, "--model", "closed/m.safetensors"), "closed/m.safetensors"),
        (("heatmap", "incoming/bad0.jpg", "-q", "--out", "closed/h"), "closed/h"),
    ],
)
def test_a_folder_that_may_not_be_written_is_refused(here: Path, arguments: tuple[str, ...], name: str) -> None:
    Path("closed").mkdir(mode=0o555)

    code, said = ended(*arguments, hook=obey_permissions)

    assert (code, said.lower()) == (1, f"error: cannot write {name.lower()}: permission denied\n")
    assert not list(Path("closed").iterdir())


def test_a_table_in_a_folder_that_may_not_be_written_is_refused_before_the_work(here: Path) -> None:
    Path("closed").mkdir()
    Path("closed/t.csv").write_text(OLD)
    Path("closed").chmod(0o555)

    code, said = ended("score", "nowhere", "-q", "--out", "closed/t.csv", hook=obey_permissions)

    assert (code, said) == (1, "error: cannot write closed/t.csv: permission denied\n")
    assert Path("closed/t.csv").read_text() == OLD


# Two runs at the same time


def wait_in_the_middle(running: Running) -> None:
    running.wait_until_reached()
    REACHED.unlink()


def test_two_runs_into_one_table_leave_one_whole_table(here: Path) -> None:
    first = start("score", "incoming", "-q", "--top", "1", hook=stop_at_the_rename)
    wait_in_the_middle(first)
    second = start("score", "incoming", "-q", "--top", "2", hook=lower_the_umask)
    second.process.join(1.0)
    waits = second.process.is_alive()
    first.send(signal.SIGTERM)

    assert waits
    assert (first.exit_code(), second.exit_code()) == (-signal.SIGTERM, 0)
    assert [row["flagged"] for row in rows_of(Path("scores.csv").read_bytes())].count("true") == 2
    assert not list(here.glob("*.partial"))


def lower_the_umask() -> None:
    """Hook: nothing that matters here."""
    os.umask(0o022)


def test_two_runs_into_one_folder_of_heatmaps_leave_every_picture_whole(here: Path) -> None:
    runs = [start("heatmap", "incoming", "-q", hook=lower_the_umask) for _ in range(2)]

    assert [run.exit_code() for run in runs] == [0, 0]
    pictures = {path.name: path.read_bytes() for path in Path("heatmaps").rglob("*") if path.is_file()}
    assert anomaly("heatmap", "incoming", "-q", "--out", "alone").exit_code == 0
    assert pictures == {path.name: path.read_bytes() for path in Path("alone").rglob("*") if path.is_file()}
