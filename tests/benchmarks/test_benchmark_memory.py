"""`benchmarks.speed.memory_growth`: what it runs, and how it counts."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.accuracy.textures import write_distinct
from benchmarks.speed import memory_growth
from benchmarks.speed.memory_growth import Cost, bytes_a_file, cost_of, kill_half_way


def test_distinct_pictures_are_seeded_and_no_two_are_alike(tmp_path: Path) -> None:
    first = write_distinct(tmp_path / "first", 120, 32, seed=1)
    again = write_distinct(tmp_path / "again", 120, 32, seed=1)
    other = write_distinct(tmp_path / "other", 1, 32, seed=2)

    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]
    assert len({path.read_bytes() for path in (*first, *other)}) == 121


def test_a_process_has_a_peak_and_a_failed_one_is_no_measurement() -> None:
    cost = cost_of("--version")

    assert cost.peak_mb > 5
    assert cost.seconds > 0
    with pytest.raises(RuntimeError, match=r"^anomaly list ended with 1$"):
        cost_of("list", "no-such-table.csv")


def test_a_run_is_killed_once_its_journal_is_long_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal, done = tmp_path / "journal", tmp_path / "done"
    code = (
        f"import sqlite3, time; database = sqlite3.connect({str(journal)!r}, isolation_level=None)\n"
        "database.execute('CREATE TABLE finished (path)')\n"
        "database.execute('PRAGMA locking_mode = EXCLUSIVE')\n"
        "database.execute('INSERT INTO finished VALUES (1), (2)')\n"
        f"time.sleep(60); open({str(done)!r}, 'w')"
    )
    monkeypatch.setattr(memory_growth, "COMMAND", [sys.executable, "-c", code])

    kill_half_way(journal, 2)

    assert journal.exists()
    assert not done.exists()


def test_growth_is_counted_for_each_file_more() -> None:
    assert bytes_a_file((1000, Cost(500, 1)), (2000, Cost(501, 1))) == pytest.approx(1048.576)


def test_every_command_runs_on_each_number_of_files(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[list[str]] = []

    def recorded(*arguments: str | Path) -> Cost:
        ran.append([each.name if isinstance(each, Path) else each for each in arguments])
        return Cost(700 + len(ran), 2)

    monkeypatch.setattr(memory_growth, "cost_of", recorded)
    monkeypatch.setattr(memory_growth, "kill_half_way", lambda *arguments: None)
    options = ["--counts", "2", "3", "--side", "16", "--commands", *memory_growth.COMMANDS]
    monkeypatch.setattr(sys, "argv", ["memory_growth", *options, "--train", "--image-size", "64"])

    memory_growth.main()

    assert ran[0] == ["train", "normal", "--model", "model.safetensors", "--image-size", "64"]
    assert ["score", "3", "--model", "model.safetensors", "--out", "3.csv"] in ran
    assert ["score", "3", "--model", "model.safetensors", "--out", "3.csv", "--resume"] in ran
    assert ["list", "2.csv", "--flagged"] in ran
    assert ["train", "3", "--model", "3.safetensors", "--image-size", "64"] in ran
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("score         2 files: peak    702 MB")
    assert len(printed) == 3 * len(memory_growth.COMMANDS)
