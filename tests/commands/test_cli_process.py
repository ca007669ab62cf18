"""The command line as a process: killed, interrupted, with a closed pipe, and how quickly it starts."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import (
    anomaly,
    close_the_reader_of_stdout,
    rows_of,
    start,
    stop_at_the_rename,
    stop_while_reading_images,
)
from shared_run import SETTINGS, Trained

OLD = "path,score,flagged\n"  # a table that may be replaced
COMMANDS = ["train", "score", "heatmap", "info"]
ANSI = re.compile(r"\x1b\[[0-9;]*m")
# Printed by every process that ends: which heavy libraries it loaded.
REPORT_IMPORTS = """
import atexit, sys
heavy = {"torch", "torchvision", "scipy", "sklearn", "pandas", "numpy", "PIL", "safetensors"}
atexit.register(lambda: print("imported:", sorted(heavy & set(sys.modules)), file=sys.stderr))
from anomaly_cli.cli import app
app(sys.argv[1:], prog_name="anomaly")
"""


def ignore_hang_ups() -> None:
    """Hook: as `nohup` starts a command; then wait while images are read."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    stop_while_reading_images()


# Whole or not at all


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_scoring_that_is_ended_before_its_table_is_complete_leaves_the_old_one(
    here: Path, end: signal.Signals
) -> None:
    Path("scores.csv").write_text(OLD)

    running = start("score", "incoming", hook=stop_at_the_rename)
    running.wait_until_reached()
    running.send(end)

    assert running.exit_code() == (130 if end is signal.SIGINT else -end)
    assert Path("scores.csv").read_text() == OLD
    assert anomaly("score", "incoming", "-q").exit_code == 0
    assert len(rows_of(Path("scores.csv").read_bytes())) == 9
    assert not Path("scores.csv.partial").exists()


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_a_training_that_is_ended_before_its_model_is_complete_leaves_the_old_one(
    here: Path, trained: Trained, end: signal.Signals
) -> None:
    running = start("train", "normal", *SETTINGS, "--seed", "1", hook=stop_at_the_rename)
    running.wait_until_reached()
    running.send(end)

    assert running.exit_code() == (130 if end is signal.SIGINT else -end)
    assert Path("anomaly.safetensors").read_bytes() == trained.model.read_bytes()
    assert anomaly("info").exit_code == 0


def test_an_interrupt_while_images_are_read_is_130_with_no_traceback_and_no_half_file(here: Path) -> None:
    running = start("score", "incoming", hook=stop_while_reading_images)
    running.wait_until_reached()
    running.send(signal.SIGINT)

    assert running.exit_code() == 130
    assert "Traceback" not in running.stderr
    assert not list(here.glob("scores*"))


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("hook", [stop_at_the_rename, stop_while_reading_images])
def test_a_run_that_gets_a_signal_dies_of_the_signal_and_leaves_nothing_behind(
    here: Path, end: signal.Signals, hook: Callable[[], None]
) -> None:
    running = start("score", "incoming", hook=hook)
    running.wait_until_reached()
    running.send(end)

    assert running.exit_code() == -end
    assert "Traceback" not in running.stderr
    assert not list(here.glob("scores*"))


def test_a_training_that_gets_a_signal_leaves_the_old_model_and_nothing_else(here: Path, trained: Trained) -> None:
    running = start("train", "normal", *SETTINGS, "--seed", "1", hook=stop_at_the_rename)
    running.wait_until_reached()
    running.send(signal.SIGTERM)

    assert running.exit_code() == -signal.SIGTERM
    assert Path("anomaly.safetensors").read_bytes() == trained.model.read_bytes()
    assert not list(here.glob("*.partial"))


def test_a_hang_up_is_ignored_where_the_shell_says_so(here: Path) -> None:
    running = start("score", "incoming", hook=ignore_hang_ups)
    running.wait_until_reached()
    running.send(signal.SIGHUP)
    time.sleep(0.2)
    running.send(signal.SIGTERM)

    assert running.exit_code() == -signal.SIGTERM


def test_a_reader_of_the_table_that_goes_away_ends_it_quietly(here: Path) -> None:
    running = start("score", "incoming", "--out", "-", "-q", hook=close_the_reader_of_stdout)

    assert running.exit_code() == 0
    assert running.stderr == ""


def test_a_reader_of_the_table_that_goes_away_does_not_hide_a_tripped_gate(here: Path) -> None:
    options = ("--out", "-", "-q", "--top", "1", "--fail-on", "flagged")
    running = start("score", "incoming", *options, hook=close_the_reader_of_stdout)

    assert running.exit_code() == 3
    assert running.stderr == "gate tripped: flagged (1 of 9 files)\n"


def test_a_reader_of_the_version_that_goes_away_is_no_traceback() -> None:
    reader, writer = os.pipe()
    os.close(reader)

    command = [sys.executable, "-m", "anomaly_cli.cli", "--version"]
    result = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)

    assert "Traceback" not in result.stderr
    assert "BrokenPipe" not in result.stderr


# Help, version, completion


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_and_each_of_its_options(command: str) -> None:
    result = anomaly(command, "--help")

    assert result.exit_code == 0
    assert result.stderr == ""
    assert f"Usage: anomaly {command}" in ANSI.sub("", result.stdout)


def test_the_help_lists_the_commands_and_no_command_shows_it() -> None:
    asked = anomaly("--help")
    bare = anomaly()

    assert asked.exit_code == 0
    assert all(command in asked.stdout for command in COMMANDS)
    assert "Audit folders of images" in bare.stdout + bare.stderr


def test_the_version_is_that_of_the_package() -> None:
    result = anomaly("--version")

    assert result.exit_code == 0
    assert re.fullmatch(r"anomaly \d+\.\d+\.\d+\S*\n", result.stdout)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--help"], "heatmap"),
        (["--version"], "anomaly "),
        (["score", "--help"], "--files-from"),
        (["--complete", "anomaly sc"], "score"),
        (["--complete", "anomaly score --fi"], "--files-from"),
        (["--complete", "anomaly score --format "], "jsonl"),
        (["--complete", "anomaly list scores.csv --fl"], "--flagged"),
        (["score", "nowhere", "--files-from", "missing"], ""),
    ],
)
def test_help_version_and_completion_import_nothing_heavy(arguments: list[str], expected: str, tmp_path: Path) -> None:
    environment = dict(os.environ)
    if arguments[0] == "--complete":
        word = str(arguments[1].count(" "))
        environment |= {"_ANOMALY_COMPLETE": "complete_bash", "COMP_WORDS": arguments[1], "COMP_CWORD": word}

    result = subprocess.run(
        [sys.executable, "-c", REPORT_IMPORTS, *arguments],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
        check=False,
    )

    assert expected in result.stdout
    assert result.stderr.splitlines()[-1] == "imported: []"


@pytest.mark.parametrize("arguments", [["--help"], ["--version"]])
def test_help_and_version_take_less_than_half_a_second_of_processor_time(arguments: list[str]) -> None:
    took = []
    for _ in range(3):
        before = os.times()
        subprocess.run([sys.executable, "-m", "anomaly_cli.cli", *arguments], capture_output=True, check=True)
        after = os.times()
        took.append(after.children_user + after.children_system - before.children_user - before.children_system)

    assert min(took) < 0.5


def test_the_installed_command_runs() -> None:
    started = time.monotonic()

    result = subprocess.run(
        [Path(sys.executable).with_name("anomaly"), "--version"], capture_output=True, text=True, check=True
    )

    assert result.stdout.startswith("anomaly ")
    assert time.monotonic() - started < 20
