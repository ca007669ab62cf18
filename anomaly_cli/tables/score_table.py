"""A table of `score` as typed values in rank order, for review and evaluation; opens no image."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from anomaly_cli.errors import InputError
from anomaly_cli.tables.reader import Record, files_of, flag_of, open_records
from anomaly_cli.tables.row import Row, Value

WORDS = ("path", "status", "reason")
NOT_SHOWN = ("rank", "content_hash")  # the order shows the rank, and nobody reads a hash
MOST_DECIMALS = 6  # as many digits as the table has


@dataclass(frozen=True)
class ReportTable:
    """The contents of a table.

    Attributes:
        digest: SHA-256 of the table; decisions of a reviewer belong to it.
        columns: `WORDS`, `score`, `flagged`, then all others that hold numbers.
        readable: one list of values per file, in the order of `columns`; most anomalous first, ties by path.
        unreadable: (path, reason), by path.
        source: file of the table.
    """

    digest: str
    columns: list[str]
    readable: list[list[Value]]
    unreadable: list[tuple[str, str]]
    source: Path = Path()

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a table in any format, with columns added or left out.

        Raises:
            InputError: it cannot be read, is no such table or lists no file.
        """
        with open_records(path) as source:
            # Read twice, since the records of a large table take several times the memory of its numbers.
            columns = _columns(source.records())
            rows = [[_typed(name, record.get(name)) for name in columns] for record in source.records()]
            if not all(row[0] for row in rows):
                raise ValueError("a path is empty")
        if not rows:
            raise InputError(f"{path} lists no file")
        readable = [row for row in rows if row[3] is not None]
        unreadable = sorted(((str(row[0]), str(row[2])) for row in rows if row[3] is None), key=_bytes_of_path)
        readable.sort(key=lambda row: (-_number(row[3]), os.fsencode(str(row[0]))))
        return cls(hashlib.sha256(source.content).hexdigest(), columns, readable, unreadable, path)

    def column(self, name: str) -> list[Value]:
        """Values of one column of the readable files; None each where there is no such column."""
        if name not in self.columns:
            return [None] * len(self.readable)
        place = self.columns.index(name)
        return [row[place] for row in self.readable]

    @property
    def paths(self) -> list[Path]:
        """Readable files, most anomalous first; relative paths count from here or from the folder of the table.

        Raises:
            InputError: none of them is there.
        """
        return files_of([str(path) for path in self.column("path")], self.source)

    @property
    def p_values(self) -> list[float]:
        """All p-values; a table of `audit` has none."""
        return [_number(p) for p in self.column("p_value") if p is not None]

    @property
    def threshold(self) -> float:
        """Score that separates the flagged from the others, in as few digits as needed; above all if none is."""
        scores = [_number(score) for score in self.column("score")]
        flagged = [score for score, chosen in zip(scores, self.column("flagged"), strict=True) if chosen]
        others = [score for score, chosen in zip(scores, self.column("flagged"), strict=True) if not chosen]
        if not flagged:
            return math.floor(max(scores, default=1.0) * 100 + 1) / 100
        lowest = min(flagged)
        below = max((score for score in others if score < lowest), default=-math.inf)
        rounded = (math.floor(lowest * 10**digits) / 10**digits for digits in range(2, MOST_DECIMALS))
        return next((each for each in rounded if each > below), lowest)

    def rows(self, scale_names: Sequence[str]) -> list[Row] | None:
        """Rebuild the rows in rank order for a verdict; None if a scale has no column."""
        if any(f"scale_{name}" not in self.columns for name in scale_names):
            return None
        rows = []
        for values in self.readable:
            known = dict(zip(self.columns, values, strict=True))
            p = known.get("p_value")
            rows.append(
                Row(
                    path=str(known["path"]),
                    score=_number(known["score"]),
                    p_value=None if p is None else _number(p),
                    flagged=bool(known["flagged"]),
                    scales=tuple(_number(known[f"scale_{name}"]) for name in scale_names),
                )
            )
        return rows + [Row(path=path, status="unreadable", reason=reason) for path, reason in self.unreadable]


def _columns(records: Iterable[Record]) -> list[str]:
    fixed = [*WORDS, "score", "flagged"]
    numeric: dict[str, bool] = {}  # whether all values so far are numbers
    for record in records:
        for name, value in record.items():
            if name is not None and numeric.get(str(name), True):
                numeric[str(name)] = _is_number(value)
    return [*fixed, *(name for name, chosen in numeric.items() if chosen and name not in (*fixed, *NOT_SHOWN))]


def _is_number(value: object) -> bool:
    try:
        return _is_empty(value) or math.isfinite(float(str(value)))
    except ValueError:
        return False


def _is_empty(value: object) -> bool:
    return value is None or value == "" or value != value or str(value) == "<NA>"  # NaN and NA: missing in Parquet


def _typed(name: str, value: object) -> Value:
    """Turn a value, perhaps text, into what its column holds."""
    if name in WORDS:
        return "" if _is_empty(value) else str(value)
    if name == "flagged":
        return flag_of(value)
    if _is_empty(value):
        return None
    number = float(str(value))
    if not math.isfinite(number):
        raise ValueError(f"{name} is {value}")
    return int(number) if number.is_integer() else number


def _number(value: Value) -> float:
    return math.nan if value is None else float(value)


def _bytes_of_path(entry: tuple[str, str]) -> bytes:
    return os.fsencode(entry[0])
