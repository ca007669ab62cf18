"""Read tables and lists back: paths, scores, records."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anomaly_cli.errors import InputError
from anomaly_cli.paths import RemotePath, path_of
from anomaly_cli.tables.formats import TableFormat, check_library, delimiter_of, format_of_content, plain_content

Record = Mapping[Any, object]
STDIN = Path("-")
WORDS = ("path", "status", "reason", "label")
DECIMAL_COMMA = re.compile(r"-?\d+,\d+(E[+-]?\d+)?", re.IGNORECASE)
TRUE = ("true", "1", "1.0", "wahr", "vrai", "verdadero", "vero", "verdadeiro")
FALSE = ("false", "0", "0.0", "falsch", "faux", "falso", "", "nan", "<na>")


@dataclass(frozen=True)
class TableSource:
    """The content of a table; its records can be read several times."""

    content: bytes
    format: TableFormat

    def records(self, needed: Sequence[str] = ("path", "score", "flagged")) -> Iterator[Record]:
        """Read the rows; use it inside `open_records`. Values are text if the format holds text only.

        Raises:
            KeyError: a needed column is missing.
            ValueError: the content is no table of its format.
        """
        file = io.BytesIO(self.content)
        if self.format is TableFormat.PARQUET:
            import pandas as pd

            frame = pd.read_parquet(file, engine="pyarrow").astype(object)
            yield from _with_columns(needed, list(frame.columns), frame.to_dict("records"))
        elif self.format is TableFormat.JSONL:
            yield from (_json_object(line, number) for number, line in enumerate(file, start=1) if line.strip())
        elif self.format is TableFormat.JSON:
            yield from _json_array(self.content)
        else:
            delimiter = delimiter_of(self.format, self.content.partition(b"\n")[0])
            text = io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="")
            reader = csv.DictReader(text, delimiter=delimiter)
            records = _with_columns(needed, reader.fieldnames or (), reader)
            yield from map(_with_decimal_points, records) if delimiter == ";" else records


@contextmanager
def open_records(
    path: Path, kind: str = "a table of `anomaly score`", table_format: TableFormat | None = None
) -> Iterator[TableSource]:
    """Open a table; errors while it is open become one line.

    Args:
        path: table; `-` is stdin.
        kind: what it should be, for error messages.
        table_format: None to decide by the content.

    Raises:
        InputError: the file cannot be read or is not of this kind.
    """
    name = "stdin" if path == STDIN else os.fspath(path)
    try:
        content = plain_content(sys.stdin.buffer.read() if path == STDIN else path.read_bytes())
        decided = table_format or format_of_content(content, path)
        check_library(decided, InputError)
        yield TableSource(content, decided)
    except OSError as error:
        raise InputError(f"cannot read {name}: {error.strerror or error}") from error
    except KeyError as error:
        raise InputError(f"{name} is not {kind}: column {error} is missing") from error
    except (ValueError, TypeError, csv.Error) as error:
        raise InputError(f"{name} is not {kind}: {error}") from error


def read_paths(path: Path, table_format: TableFormat | None = None) -> list[tuple[str, float, bool]]:
    """Read a table that `score` wrote, perhaps filtered or sorted since.

    Returns:
        (path, score, flagged) of every file that has a score, most anomalous first.

    Raises:
        InputError: the file cannot be read or is not such a table.
    """
    with open_records(path, table_format=table_format) as source:
        scored = [entry for record in source.records() if (entry := _score_of(record)) is not None]
    return sorted(scored, key=lambda entry: (-entry[1], os.fsencode(entry[0])))


def _with_columns(needed: Sequence[str], columns: Collection[object], records: Iterable[Record]) -> Iterable[Record]:
    missing = [name for name in needed if name not in columns]
    if missing:
        raise KeyError(missing[0])
    return records


def _json_object(line: bytes, number: int) -> Record:
    try:
        record: object = json.loads(line)
    except ValueError:
        record = None
    if not isinstance(record, dict):
        raise ValueError(f"line {number} is not a JSON object")
    return record


def _json_array(content: bytes) -> Iterator[Record]:
    records = json.loads(content)
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise ValueError("no JSON array of objects")
    yield from records


def _with_decimal_points(record: Record) -> Record:
    """Write numbers of a spreadsheet that has decimal commas with points."""
    return {
        name: value.replace(",", ".")
        if name not in WORDS and isinstance(value, str) and DECIMAL_COMMA.fullmatch(value)
        else value
        for name, value in record.items()
    }


def flag_of(value: object) -> bool:
    """Read a flag, also one that a spreadsheet translated.

    Raises:
        ValueError: it is neither true nor false.
    """
    word = str(value).lower()
    if word in TRUE or word in FALSE or value is None:
        return word in TRUE
    raise ValueError(f"flagged is {value}, not true or false")


def file_of(path: str, table: Path) -> Path:
    """Find the file that a path of a table means: from the current folder, else from that of the table if it is there.

    Args:
        path: as in the table.
        table: its file.
    """
    file = path_of(path)
    if isinstance(file, RemotePath) or os.path.lexists(path):
        return file
    beside = table.parent / path
    return beside if os.path.lexists(beside) else file


def files_of(paths: Sequence[str], table: Path) -> list[Path]:
    """Find the files that the paths of a table mean; see `file_of`.

    Raises:
        InputError: none of them is there.
    """
    files = [file_of(path, table) for path in paths]
    if files and not any(isinstance(file, RemotePath) or os.path.lexists(file) for file in files):
        raise InputError(
            f"{'stdin' if table == STDIN else table}: none of its files is found, such as {paths[0]}; relative paths "
            "count from the current folder or from that of the table"
        )
    return files


def _score_of(record: Record) -> tuple[str, float, bool] | None:
    """Take (path, score, flagged) from a record, whose values are text if read from CSV; None if unscored."""
    path, score, flagged = record["path"], record["score"], record["flagged"]
    if not isinstance(path, str) or not path:
        raise ValueError("a path is empty")
    if score is None or score == "" or score != score:  # NaN is how Parquet stores a missing score
        return None
    return path, float(str(score)), flag_of(flagged)
