"""Two ways to run the command line in tests: inside this process, and as a process that can be killed.

A fresh interpreter spends seconds on importing torch. `start` forks from a server that has it imported already, so
that signals, exit codes and closed pipes can be tested on a real process at little cost.
"""

from __future__ import annotations

import csv
import io
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import NoReturn

import pytest
from typer.testing import CliRunner, Result

from anomaly_cli.cli import app
from anomaly_cli.training import stage2, views

DEADLINE_S = 180.0
FEW_DEFECTS = 16  # planted for small models; the 128 of the product take a third of their training
REACHED = Path("reached")  # what a hook leaves when the process has come to the place where it shall die

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["anomaly_cli.cli", "anomaly_cli.scoring.score", "anomaly_cli.training.train"])


def anomaly(*arguments: str | Path, stdin: bytes | None = None, charset: str = "utf-8") -> Result:
    """Run a command in this process; an exception that it does not catch fails the test."""
    runner = CliRunner(charset=charset)
    return runner.invoke(
        app, [os.fspath(argument) for argument in arguments], input=stdin, prog_name="anomaly", catch_exceptions=False
    )


def rows_of(table: bytes, delimiter: str = ",") -> list[dict[str, str]]:
    """Parse a table in CSV or TSV."""
    text = io.StringIO(table.decode("utf-8", "surrogateescape"), newline="")
    return list(csv.DictReader(text, delimiter=delimiter))


@dataclass
class Running:
    """A command in a process of its own, in the current folder, with its output in files."""

    process: ForkServerProcess
    folder: Path

    def wait_until_reached(self) -> None:
        """Wait for the place that the hook marks."""
        deadline = time.monotonic() + DEADLINE_S
        while not (self.folder / REACHED).exists():
            assert self.process.is_alive(), f"ended early with {self.process.exitcode}: {self.stderr}"
            assert time.monotonic() < deadline, "the process did not come to the place where it shall die"
            time.sleep(0.01)

    def send(self, number: int) -> None:
        """Send a signal."""
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def exit_code(self) -> int | None:
        """Wait for the end; minus the number of the signal if one killed it."""
        self.process.join(DEADLINE_S)
        return self.process.exitcode

    @property
    def stderr(self) -> str:
        """What was written to stderr so far."""
        return (self.folder / "stderr").read_text("utf-8")


def start(*arguments: str, hook: Callable[[], None]) -> Running:
    """Start a command in the current folder, after calling the hook in its process."""
    (Path.cwd() / "stderr").touch()
    process = _SERVER.Process(target=_command, args=(arguments, os.fspath(Path.cwd()), hook), daemon=True)
    process.start()
    return Running(process, Path.cwd())


def _command(arguments: Iterable[str], folder: str, hook: Callable[[], None]) -> None:
    os.chdir(folder)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    # A shell that starts the tests in the background has them ignore Ctrl-C, `nohup` hang-ups; children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    stage2.SYNTHETIC_DEFECTS = FEW_DEFECTS
    views.FEW_NORMALS = 0
    hook()
    app(list(arguments), prog_name="anomaly")


def stop_at_the_rename() -> None:
    """Hook: wait where an output is complete under its temporary name only."""

    def wait(*_: object) -> NoReturn:
        REACHED.touch()
        time.sleep(DEADLINE_S)
        raise TimeoutError("nobody ended this process")

    pytest.MonkeyPatch().setattr(Path, "replace", wait)


def stop_while_reading_images() -> None:
    """Hook: wait, interruptibly and in the main thread, once the first images are read."""

    def wait(*_: object) -> NoReturn:
        REACHED.touch()
        time.sleep(DEADLINE_S)
        raise TimeoutError("nobody ended this process")

    pytest.MonkeyPatch().setattr("anomaly_cli.scoring.rows.make_row", wait)


def close_the_reader_of_stdout() -> None:
    """Hook: make stdout a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    os.dup2(writer, 1)
    os.close(writer)
    assert sys.stdout.fileno() == 1
