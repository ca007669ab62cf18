"""The journal by itself: what comes back from it, whatever happens to its file."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from anomaly_cli.errors import OutputError
from anomaly_cli.scoring import journal
from anomaly_cli.scoring.journal import Journal, open_journal
from anomaly_cli.tables.row import Row

MODEL = {"model": "one"}
OTHER_IDENTITY = "is of another model, version or machine: starting over"
ENTRIES = 30

# What comes back


def test_a_file_that_changes_while_it_is_measured_is_not_entered(tmp_path: Path) -> None:
    image = tmp_path / "a.png"
    image.write_bytes(b"before")

    with open_journal(tmp_path / "t.csv", MODEL) as opened:
        assert opened.finished([image]) == []
        image.write_bytes(b"afterwards")
        opened.add(Row(path=str(image), score=1.0))

    with open_journal(tmp_path / "t.csv", MODEL) as opened:
        assert opened.finished([image]) == []


def test_rows_come_back_exactly_whatever_their_numbers_and_names(tmp_path: Path) -> None:
    image = tmp_path / os.fsdecode(b'caf\xe9\n"\\.png')
    image.write_bytes(b"pixels")
    row = Row(path=str(image), score=0.1 + 0.2, p_value=5e-324, width=3, scales=(1 / 3, 1e300), content_hash=None)

    with open_journal(tmp_path / "t.csv", MODEL) as opened:
        opened.finished([image])
        opened.add(row)
    with open_journal(tmp_path / "t.csv", MODEL) as opened:
        assert opened.finished([image]) == [row]


def test_what_is_no_regular_file_is_never_entered_and_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    names = [tmp_path / "pipe.png", tmp_path / "gone.png", tmp_path]

    with open_journal(tmp_path / "t.csv", MODEL) as opened:
        assert opened.finished(names) == []
        for name in names:
            opened.add(Row(path=str(name), status="unreadable", reason="why"))

    assert not (tmp_path / "t.csv.journal").exists()


def test_a_journal_removed_by_the_run_before_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fault = journal._fault
    path = tmp_path / "t.csv.journal"

    def lock_and_remove(*arguments: Any) -> str:
        found = fault(*arguments)
        path.unlink()
        monkeypatch.setattr(journal, "_fault", fault)
        return found

    monkeypatch.setattr(journal, "_fault", lock_and_remove)

    with open_journal(tmp_path / "t.csv", MODEL):
        assert path.exists()


# What happens to its file


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Files in the current folder."""
    monkeypatch.chdir(tmp_path)
    paths = [Path(f"{i:02}.png") for i in range(ENTRIES)]
    for path in paths:
        path.write_bytes(b"pixels of " + path.name.encode())
    return paths


def enter(images: list[Path]) -> tuple[int, str]:
    """Open the journal, enter what is not in it, and return how many files were, and what was wrong with it."""
    with open_journal(Path("t.csv"), MODEL) as opened:
        rows = {row.path: row for row in opened.finished(images)}
        for i, path in enumerate(images):
            row = Row(path=str(path), score=i / 7, scales=(i / 3, 1.0), perceptual_hash="f" * 600)
            assert rows.get(row.path, row) == row
            if row.path not in rows:
                opened.add(row)
        return opened.resumed, opened.discarded


SCRIPT = """
import resource, signal, sys
from pathlib import Path
from anomaly_cli.scoring.journal import Journal, open_journal
from anomaly_cli.tables.row import Row
size = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
images = sorted(Path().glob("*.png"))
with open_journal(Path("t.csv"), {"model": "one"}) as opened:
    opened.finished(images)
    for i, path in enumerate(images):
        opened.add(Row(path=str(path), score=i / 7, scales=(i / 3, 1.0), perceptual_hash="f" * 600))
        print(path, flush=True)
"""


@pytest.mark.parametrize("size", [0, 100, 512, 600, 5000, 8192, 8700, 12300, 14000, 16384, 17000, 20480, 24000, 28700])
def test_a_kill_in_the_middle_of_a_write_costs_one_file_at_most(images: list[Path], size: int) -> None:
    killed = subprocess.run([sys.executable, "-c", SCRIPT, str(size)], stdout=subprocess.PIPE, check=False)
    entered = killed.stdout.count(b"\n")

    resumed, discarded = enter(images)

    assert killed.returncode == -signal.SIGXFSZ
    assert discarded == ""
    assert entered <= resumed <= min(entered + 1, ENTRIES - 1)
    assert enter(images) == (ENTRIES, "")
    assert list(Path().glob("t.csv.*")) == [Path("t.csv.journal")]


@pytest.mark.parametrize("length", [4095, 4096, 6000, 8192])
def test_a_journal_that_lacks_its_end_is_discarded(images: list[Path], length: int) -> None:
    enter(images)
    file = Path("t.csv.journal")
    file.write_bytes(file.read_bytes()[:length])

    assert enter(images) == (0, "is damaged: starting over")
    assert enter(images) == (ENTRIES, "")


@pytest.mark.parametrize("page", [0, 1, 2, 5])
def test_a_page_overwritten_by_zeros_is_noticed(images: list[Path], page: int) -> None:
    enter(images)
    file = Path("t.csv.journal")
    content = bytearray(file.read_bytes())
    start = page * 4096 + (100 if page == 0 else 0)  # behind the header of the database
    content[start : (page + 1) * 4096] = bytes((page + 1) * 4096 - start)
    file.write_bytes(content)

    assert enter(images) == (0, "is damaged: starting over")


def test_another_identity_and_a_text_journal_of_an_earlier_version_are_given_up(images: list[Path]) -> None:
    enter(images)
    with open_journal(Path("t.csv"), {"model": "two"}) as opened:
        assert opened.discarded == f"{OTHER_IDENTITY}, {ENTRIES} finished files given up"
        assert opened.finished(images) == []

    Path("t.csv.journal").write_text('{"anomaly journal": 1, "columns": ["path"], "model": "one"}\n{"row": 1}\n{"ro')

    assert enter(images) == (0, f"{OTHER_IDENTITY}, 1 finished file given up")


def test_a_database_of_another_program_is_left_alone(images: list[Path]) -> None:
    with closing(sqlite3.connect("t.csv.journal")) as database:
        database.execute("CREATE TABLE diary (entry TEXT)")
    content = Path("t.csv.journal").read_bytes()

    with pytest.raises(OutputError, match=r"^t.csv.journal is not a journal of `anomaly score`; move it away$"):
        enter(images)

    assert Path("t.csv.journal").read_bytes() == content


def test_a_second_run_is_refused_and_one_without_finished_files_leaves_nothing(images: list[Path]) -> None:
    with open_journal(Path("t.csv"), MODEL), pytest.raises(OutputError) as raised:
        enter(images)

    rule = "wait for it or choose another --out"
    assert str(raised.value) == f"another run with --resume has t.csv.journal open; {rule}"
    assert not list(Path().glob("t.csv*"))


def add_all(opened: Journal, images: list[Path]) -> None:
    for image in images:
        opened.add(Row(path=str(image), score=1.0))


def test_a_full_disk_is_one_line_and_what_was_entered_before_stays(tmp_path: Path) -> None:
    images = [tmp_path / f"{i}.png" for i in range(100)]
    for image in images:
        image.write_bytes(b"pixels")

    with open_journal(tmp_path / "t.csv", MODEL) as opened:
        opened._database.execute("PRAGMA max_page_count = 8")
        opened.finished(images)
        with pytest.raises(OutputError) as raised:
            add_all(opened, images)

    assert str(raised.value) == f"cannot write {tmp_path / 't.csv.journal'}: No space left on device"
    with open_journal(tmp_path / "t.csv", MODEL) as opened:
        assert 5 < len(opened.finished(images)) < 100
