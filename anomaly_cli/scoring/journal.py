"""The finished rows of a run of `score`, kept beside its table: a killed run resumes and measures nothing twice.

A journal is text: a first line that says what its rows depend on, then one line per file. Each line is one write, so
that a kill cuts the last one at most. It survives the end of the process, not a power cut.
"""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO

from anomaly_cli.errors import OutputError
from anomaly_cli.files import Stamp, content_of, file_stamp, locked
from anomaly_cli.tables.row import Row

KEY = "anomaly journal"  # how the first line begins, with the number of the format
START = b'{"' + KEY.encode() + b'": '
FORMAT = 1
BLOCK = 2**20  # bytes
SETTLED_NS = 2_000_000_000  # a file changed more recently may change again within one tick of its time stamp


@dataclass(frozen=True, slots=True)
class _Entry:
    """One finished file.

    Attributes:
        stamp: equal as long as nobody wrote to the file; None if it was too fresh to rely on that.
        content: SHA-256 of the file, for when the stamp differs: copied, touched, or moved back.
        row: exactly as measured.
    """

    stamp: Stamp | None
    content: str
    row: Row


class Journal:
    """Finished rows of earlier runs, and the place where this run adds its own.

    Attributes:
        path: of the journal.
        resumed: how many finished files `finished` found.
        discarded: how many finished files of an earlier journal were discarded, since its identity differs.
    """

    def __init__(self, path: Path, file: BinaryIO, identity: dict[str, Any]) -> None:
        self.path = path
        self.resumed = self.discarded = 0
        self._file = file
        self._entries = self._read(identity)
        self._is_empty = not self._entries
        self._stamps: dict[str, Stamp | None] = {}  # of the files that are not finished

    def finished(self, paths: Sequence[Path]) -> list[Row]:
        """Find the rows of those files that are done already and hold the same content still.

        Call this once, before measuring the others: a file that changes from here on is not entered by `add`.
        """
        rows = []
        for path in paths:
            name = os.fspath(path)
            stamp = file_stamp(path)
            entry = self._entries.pop(name, None)
            if entry is not None and stamp is not None and _is_of(entry, stamp, path):
                rows.append(entry.row)
            else:
                self._stamps[name] = stamp
        self._entries.clear()  # rows of files that are not asked for
        self.resumed = len(rows)
        return rows

    def add(self, row: Row) -> None:
        """Enter a finished file, unless it cannot be identified: it changed meanwhile, is gone or may not be read.

        Raises:
            OutputError: the journal cannot be written.
        """
        path = Path(row.path)
        before, content = self._stamps.pop(row.path), row.content_hash or content_of(path)
        if before is None or content is None or file_stamp(path) != before:
            return
        settled = time.time_ns() - max(before[1:3]) > SETTLED_NS
        self._write(asdict(_Entry(before if settled else None, content, row)))
        self._is_empty = False

    def remove(self) -> None:
        """Remove the journal once the table is complete."""
        self.path.unlink(missing_ok=True)

    def remove_if_empty(self) -> None:
        """Leave nothing behind where nothing was finished."""
        if self._is_empty:
            self.remove()

    def _read(self, identity: dict[str, Any]) -> dict[str, _Entry]:
        lines = _lines(self._file)
        header = next(lines, b"")
        if header[: len(START)] != START[: len(header)]:
            raise OutputError(f"{self.path} is not a journal of `anomaly score`; move it away")
        if not header.endswith(b"\n") or _parsed(header) != identity:
            self.discarded = sum(line.endswith(b"\n") for line in lines)
            self._file.truncate(0)
            self._write(identity)
            return {}
        entries: dict[str, _Entry] = {}
        end = len(header)
        for line in lines:
            if line.endswith(b"\n"):  # behind the last newline is what a kill cut off
                end += len(line)
                if (entry := _entry(line)) is not None:
                    entries[entry.row.path] = entry
        self._file.truncate(end)
        return entries

    def _write(self, record: dict[str, Any]) -> None:
        line = json.dumps(record).encode() + b"\n"
        try:
            if self._file.write(line) < len(line):
                raise OutputError(f"cannot write {self.path}: {os.strerror(errno.ENOSPC)}")
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror}") from error


@contextmanager
def open_journal(table: Path, identity: dict[str, str]) -> Iterator[Journal]:
    """Open the journal of a table, `<table>.journal`, for this process alone.

    Args:
        table: file that the run will write.
        identity: all that a row depends on besides its file: model, versions, device.

    Raises:
        OutputError: another run has it open, it cannot be written, or the file of that name is no journal.
    """
    path = table.with_name(table.name + ".journal")
    columns = [field.name for field in fields(Row)]
    with locked(path, "--out") as file:
        try:
            journal = Journal(path, file, {KEY: FORMAT, "columns": columns, **identity})
        except OutputError:
            if not os.fstat(file.fileno()).st_size:  # made just now, and the disk is full
                path.unlink()
            raise
        try:
            yield journal
        finally:
            journal.remove_if_empty()


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Read an unbuffered file line by line, which it would do byte by byte: that of a million files is a gigabyte."""
    left = b""
    while block := file.read(BLOCK):
        *lines, left = (left + block).split(b"\n")
        yield from (line + b"\n" for line in lines)
    if left:
        yield left


def _is_of(entry: _Entry, stamp: Stamp, path: Path) -> bool:
    """Whether a finished file still has the same content."""
    return entry.stamp == stamp or entry.content == content_of(path)


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def _entry(line: bytes) -> _Entry | None:
    """Read one line; None if it is damaged, so that its file is measured again."""
    record = _parsed(line)
    try:
        stamp = None if record["stamp"] is None else tuple(record["stamp"])
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in record["row"].items()
        }
        return _Entry(stamp, record["content"], Row(**values))
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
