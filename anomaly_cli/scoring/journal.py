"""The finished rows of a run of `score`, kept beside its table: a killed run resumes and measures nothing twice.

A journal is an SQLite database. Each finished file is a transaction of its own, so that a kill costs the file that was
being entered at most. Nothing waits for the disk: a journal survives the end of the process, not a power cut.
"""

from __future__ import annotations

import errno
import json
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import fields
from pathlib import Path

from anomaly_cli.errors import OutputError
from anomaly_cli.files import Stamp, check_writable, content_of, file_stamp
from anomaly_cli.tables.row import Row

FORMAT = 2
TEXT_JOURNAL = b'{"anomaly journal": '  # how a journal of format 1 begins
APPLICATION_ID = 0x616E6F6D  # distinguishes a journal from databases of other programs
HEADER_BYTES = 72  # of a database, which end with its application id
SETTLED_NS = 2_000_000_000  # a file changed more recently may change again within one tick of its time stamp


class Journal:
    """Finished rows of earlier runs, and the place where this run adds its own.

    Attributes:
        path: of the journal.
        resumed: how many finished files `finished` found.
        discarded: what was wrong with an earlier journal that was discarded, as a sentence without its subject; empty
            if there was none.
    """

    def __init__(self, path: Path, database: sqlite3.Connection, discarded: str) -> None:
        self.path = path
        self.resumed = 0
        self.discarded = discarded
        self._database = database
        self._stamps: dict[str, Stamp | None] = {}  # of the files that are not finished

    def finished(self, paths: Sequence[Path]) -> list[Row]:
        """Find the rows of those files that are finished and still have the same content.

        Call this once, before measuring the others: a file that changes from here on is not entered by `add`.
        """
        rows = []
        for path in paths:
            stamp = file_stamp(path)
            row = None if stamp is None else self._find(path, stamp)
            if row is None:
                self._stamps[os.fspath(path)] = stamp
            else:
                rows.append(row)
        self.resumed = len(rows)
        return rows

    def _find(self, path: Path, stamp: Stamp) -> Row | None:
        """Find a finished file: its stamp must be equal, or else its content (it was copied, touched or moved back)."""
        query = "SELECT stamp, content_hash, row FROM finished WHERE path = ?"
        with _errors_as_output_error(self.path):
            entry = self._database.execute(query, (os.fsencode(path),)).fetchone()
        if entry is None:
            return None
        before, content_hash, row = entry
        return _row_of(row) if before == json.dumps(stamp) or content_hash == content_of(path) else None

    def add(self, row: Row) -> None:
        """Enter a finished file, unless it cannot be identified: it changed meanwhile, is gone or may not be read.

        Raises:
            OutputError: the journal cannot be written.
        """
        path = Path(row.path)
        before, content_hash = self._stamps.pop(row.path), row.content_hash or content_of(path)
        if before is None or content_hash is None or file_stamp(path) != before:
            return
        settled = time.time_ns() - max(before[1:3]) > SETTLED_NS
        stamp = json.dumps(before) if settled else None  # one that is too fresh is not reliable
        entry = (os.fsencode(path), stamp, content_hash, row.to_json())
        with _errors_as_output_error(self.path):
            self._database.execute("INSERT OR REPLACE INTO finished VALUES (?, ?, ?, ?)", entry)

    def remove(self) -> None:
        """Remove the journal once the table is complete."""
        _remove(self.path)

    def is_empty(self) -> bool:
        """Whether no file is finished."""
        with _errors_as_output_error(self.path):
            return self._database.execute("SELECT 1 FROM finished LIMIT 1").fetchone() is None


@contextmanager
def open_journal(table: Path, identity: dict[str, str]) -> Iterator[Journal]:
    """Open the journal of a table, `<table>.journal`, for this process alone; leave none without finished files.

    Args:
        table: file that the run will write.
        identity: all that a row depends on besides its file: model, versions, device. The journal of another identity,
            an older format, or a damaged one is discarded.

    Raises:
        OutputError: another run has it open, it cannot be written, or the file of that name is no journal.
    """
    path = table.with_name(table.name + ".journal")
    columns = [field.name for field in fields(Row)]
    wanted = json.dumps({"format": FORMAT, "columns": columns, **identity})
    check_writable(path)
    database, discarded = _open(path, wanted)
    with closing(database):
        journal = Journal(path, database, discarded)
        try:
            yield journal
        finally:
            if path.exists() and journal.is_empty():
                journal.remove()


def _open(path: Path, identity: str) -> tuple[sqlite3.Connection, str]:
    """Open a journal of this identity, after removing one that is not; say what was wrong with it."""
    discarded = ""
    while True:
        database = sqlite3.connect(path, timeout=0, isolation_level=None)
        try:
            with _errors_as_output_error(path):
                fault = _fault(database, path, identity)
            if not fault and path.exists():  # the run before may have removed it before it was locked here
                return database, discarded
            if fault:
                discarded = fault
                _remove(path)
        except BaseException:
            database.close()
            if path.exists() and not path.stat().st_size:  # made just now, and the disk is full
                _remove(path)
            raise
        database.close()


def _fault(database: sqlite3.Connection, path: Path, identity: str) -> str:
    """Lock a journal, make its tables if it is new, and say what prevents its use; empty if nothing does.

    Raises:
        OutputError: another run has it open, or it is no journal.
        sqlite3.Error: it cannot be written.
    """
    try:
        # No write-ahead log (WAL): it needs shared memory, which network disks lack.
        database.execute("PRAGMA locking_mode = EXCLUSIVE")  # from the next statement until it is closed
        database.execute("PRAGMA synchronous = OFF")
        database.execute("BEGIN EXCLUSIVE")
        (application_id,) = database.execute("PRAGMA application_id").fetchone()
        if not database.execute("SELECT 1 FROM sqlite_master").fetchone():
            _create(database, identity)
        elif application_id != APPLICATION_ID:
            raise OutputError(_no_journal(path))
        elif database.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
            return _fault_of_damaged(path)
        elif database.execute("SELECT identity FROM journal").fetchone() != (identity,):
            (count,) = database.execute("SELECT count(*) FROM finished").fetchone()
            return _other_identity(count)
        database.execute("COMMIT")
    except sqlite3.DatabaseError as error:
        code = error.sqlite_errorcode & 0xFF  # without the details of extended codes
        if code == sqlite3.SQLITE_BUSY:
            rule = "wait for it or choose another --out"
            raise OutputError(f"another run with --resume has {path} open; {rule}") from error
        if code not in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
            raise
        return _fault_of_damaged(path)
    return ""


def _fault_of_damaged(path: Path) -> str:
    """Say what is wrong with a file that SQLite cannot read; raise an OutputError if it was never a journal."""
    with path.open("rb") as file:
        header = file.read(HEADER_BYTES)
        if header.endswith(APPLICATION_ID.to_bytes(4, "big")):
            return "is damaged: starting over"
        if header.startswith(TEXT_JOURNAL):
            file.seek(0)
            return _other_identity(sum(line.endswith(b"\n") for line in file) - 1)
    raise OutputError(_no_journal(path))


def _create(database: sqlite3.Connection, identity: str) -> None:
    """Make the tables, within a transaction."""
    database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    database.execute("CREATE TABLE journal (identity TEXT)")
    database.execute("INSERT INTO journal VALUES (?)", (identity,))
    columns = "path BLOB PRIMARY KEY, stamp TEXT, content_hash TEXT, row TEXT"
    database.execute(f"CREATE TABLE finished ({columns})")


def _remove(path: Path) -> None:
    """Remove a journal and what SQLite may have left beside it."""
    path.with_name(path.name + "-journal").unlink(missing_ok=True)
    path.unlink(missing_ok=True)


@contextmanager
def _errors_as_output_error(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        full = error.sqlite_errorcode == sqlite3.SQLITE_FULL
        raise OutputError(f"cannot write {path}: {os.strerror(errno.ENOSPC) if full else error}") from error


def _no_journal(path: Path) -> str:
    return f"{path} is not a journal of `anomaly score`; move it away"


def _other_identity(count: int) -> str:
    files = f"{count} finished file{'s' * (count != 1)}"
    return f"is of another model, version or machine: starting over, {files} given up"


def _row_of(text: str) -> Row | None:
    """Read a row; None if it is damaged, so that its file is measured again."""
    try:
        return Row.from_json(text)
    except (KeyError, TypeError, ValueError):
        return None
