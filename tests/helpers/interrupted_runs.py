"""Scoring with a journal that is killed after some files."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
from contextlib import closing
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from command_line import anomaly, start

from anomaly_cli.images import decode
from anomaly_cli.images.decode import LoadedImage
from anomaly_cli.scoring import pixels
from anomaly_cli.scoring.journal import Journal
from anomaly_cli.tables.row import Row

FILES = 9  # in the folder `incoming`
TABLE = Path("scores.csv")
JOURNAL = Path("scores.csv.journal")
MODEL = {"model": "one"}


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


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were measured, in this process."""
    names: list[str] = []
    load = decode.load_image

    def counted(path: Path, image_size: int, **options: Any) -> LoadedImage:
        names.append(path.name)
        return load(path, image_size, **options)

    monkeypatch.setattr(pixels, "load_image", counted)
    return names


@pytest.fixture
def uninterrupted(here: Path) -> bytes:
    """The table of a run without a journal, made and taken away; `mine` is a folder whose files may be changed."""
    shutil.copytree("incoming", "mine")
    Path("mine", "cut.png").write_bytes(Path("mine", "good0.png").read_bytes()[:200])
    return scored()
