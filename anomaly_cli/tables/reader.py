"""Read tables and lists back: paths, scores, records."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from anomaly_cli.errors import InputError
from anomaly_cli.tables.formats import DELIMITERS, TableFormat, by_suffix, check_library

if TYPE_CHECKING:
    pass


Record = Mapping[Any, object]


def read_paths(path: Path) -> list[tuple[str, float, bool]]:
    """Read a table that `write_table` wrote, perhaps filtered or sorted since.

    Args:
        path: table; its suffix says the format.

    Returns:
        (path, score, flagged) of every file that has a score, most anomalous first.

    Raises:
        InputError: the file cannot be read or is not such a table.
    """
    format = by_suffix(path)
    check_library(format, InputError)
    with reading(str(path)), path.open("rb") as file:
        scored = [entry for record in read_records(file, format) if (entry := score_of(record)) is not None]
    return sorted(scored, key=lambda entry: (-entry[1], os.fsencode(entry[0])))


@contextmanager
def reading(name: str, kind: str = "a table of `anomaly score`") -> Iterator[None]:
    """Turn errors while a table is opened and read into one line.

    Raises:
        InputError: the file cannot be read or is not of this kind.
    """
    foreign = f"{name} is not {kind}: "
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot read {name}: {error.strerror or error}") from error
    except KeyError as error:
        raise InputError(f"{foreign}column {error} is missing") from error
    except (ValueError, TypeError, csv.Error) as error:
        raise InputError(f"{foreign}{error}") from error


def read_records(
    file: BinaryIO, format: TableFormat, needed: Sequence[str] = ("path", "score", "flagged")
) -> Iterator[Record]:
    """Read the rows of a table; use it inside `reading`. Values are text where the format is."""
    if format is TableFormat.PARQUET:
        import pandas as pd

        frame = pd.read_parquet(file, engine="pyarrow").astype(object)
        yield from _with_columns(needed, list(frame.columns), frame.to_dict("records"))
    elif format is TableFormat.JSONL:
        numbered = enumerate(file, start=1)
        yield from (_json_object(line, number) for number, line in numbered if line.strip())
    else:
        # Excel puts a byte order mark in front when it saves a table.
        with io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="") as text:
            reader = csv.DictReader(text, delimiter=DELIMITERS[format])
            yield from _with_columns(needed, reader.fieldnames or (), reader)


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


def score_of(record: Record) -> tuple[str, float, bool] | None:
    """Take (path, score, flagged) from a record, whose values are text if read from CSV; None if unscored."""
    path, score, flagged = record["path"], record["score"], record["flagged"]
    if not isinstance(path, str) or not path:
        raise ValueError("a path is empty")
    if score is None or score == "" or score != score:  # NaN is how Parquet stores a missing score
        return None
    return path, float(str(score)), str(flagged).lower() == "true"
