"""The table that `score` writes: ranks rows, writes them as one complete file, reads it back; scores nothing.

Imports nothing heavy: the command line takes `TableFormat` from here for `--help`.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

from anomaly_cli.errors import AnomalyError, InputError, OutputError
from anomaly_cli.partial_file import open_partial

if TYPE_CHECKING:
    import pandas as pd

SIGNIFICANT_DIGITS = 6  # float32 carries 7; the last one differs between processors
Value = str | int | float | bool | None
Record = Mapping[Any, object]

_WHOLE_NUMBERS = ("rank", "width", "height", "region_x", "region_y", "region_w", "region_h", "duplicate_group")
_WORDS = ("path", "status", "reason", "content_hash")
_QUALITY = ("aspect", "brightness", "contrast", "sharpness", "content_hash", "duplicate_group")
_DELIMITERS = {"csv": ",", "tsv": "\t"}
_STREAMS = ("/dev/std", "/dev/fd/", "/proc/")


class TableFormat(StrEnum):
    """How a table is stored."""

    CSV = "csv"
    TSV = "tsv"
    JSONL = "jsonl"
    PARQUET = "parquet"


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """What `score` says about one file; of an unreadable one only `path`, `status` and `reason` are known."""

    path: str  # from os.fsdecode: a name that is not UTF-8 holds surrogates
    score: float | None = None  # >= 0, higher = more anomalous, 1.0 = the limit of normal
    p_value: float | None = None
    q_value: float | None = None
    flagged: bool = False
    status: Literal["ok", "unreadable"] = "ok"
    reason: str = ""  # one short sentence; empty when ok
    width: int | None = None  # pixels, as are the other sizes
    height: int | None = None
    region_x: int | None = None
    region_y: int | None = None
    region_w: int | None = None
    region_h: int | None = None
    region_fraction: float | None = None  # of the anomaly map, in (0, 1]
    scales: tuple[float, ...] = ()  # what each scale contributed, finest first
    aspect: float | None = None  # width / height; this and what follows as in `quality.Quality`
    brightness: float | None = None
    contrast: float | None = None
    sharpness: float | None = None
    content_hash: str | None = None
    look: str | None = None  # perceptual hash, no column: what `duplicate_group` is found by
    duplicate_group: int | None = None  # the same for files that are copies or near-copies of each other

    def __post_init__(self) -> None:
        if (self.status == "ok") != (self.score is not None and math.isfinite(self.score)):
            raise ValueError(f"a row is ok exactly if its score is finite, got {self.status}, {self.score}")


def format_of(path: Path | None, chosen: TableFormat | None = None) -> TableFormat:
    """Decide how a table is stored: as chosen, else by the suffix of its name, else CSV.

    Raises:
        OutputError: parquet was asked for and pyarrow is missing. Ask before scoring, not after.
    """
    decided = chosen or _by_suffix(path)
    check_library(decided, OutputError)
    return decided


def rank_rows(rows: Iterable[Row]) -> list[Row]:
    """Order rows by falling score as printed, ties by the bytes of the path; unreadable ones last by path."""

    def place(row: Row) -> tuple[float, bytes]:
        return (math.inf if row.score is None else -_rounded(row.score), os.fsencode(row.path))

    return sorted(rows, key=place)


def to_frame(rows: Iterable[Row], strides: Sequence[str], *, with_quality: bool = False) -> pd.DataFrame:
    """Build the ranked table as a data frame.

    Args:
        rows: in any order.
        strides: name of each scale, finest first; scale "4" becomes column `scale_4`.
        with_quality: whether the quality columns follow.

    Returns:
        One row a file, numbers rounded to six significant digits. Missing whole numbers are `pd.NA`, missing
        fractions NaN. Words stay Python objects, because Arrow strings cannot hold a name that is not UTF-8.
    """
    import pandas as pd  # takes longer than all of `--help` may

    columns = _columns(strides, with_quality)
    frame = pd.DataFrame(_records(rows, strides, with_quality), columns=columns, dtype=object)
    kinds = {name: "float64" for name in columns if name not in _WORDS}
    whole = [name for name in _WHOLE_NUMBERS if name in columns]
    return frame.astype(kinds | dict.fromkeys(whole, "Int64") | {"flagged": "bool"})


def write_table(
    rows: Iterable[Row],
    strides: Sequence[str],
    out: Path | None,
    format: TableFormat,
    *,
    with_quality: bool = False,
) -> None:
    r"""Rank rows and write them, as a complete file or not at all.

    A name that is not UTF-8 keeps its bytes in CSV and TSV. JSON must be valid Unicode: there a stray byte XX
    is the escape `\udcXX`, which Python's `json` turns back into what `os.fsencode` expects. In Parquet the
    same escape is plain text: good to recognise the file by, but it no longer opens it.

    Args:
        rows: in any order.
        strides: name of each scale, finest first.
        out: file to replace; None means stdout.
        format: see `format_of`.
        with_quality: whether the quality columns follow.

    Raises:
        OutputError: `out` cannot be written, or pyarrow is missing.
        BrokenPipeError: the reader of a pipe went away; nothing is wrong with us.
    """
    check_library(format, OutputError)
    if out is not None:
        with atomic_output(out) as file:
            _write(rows, strides, file, format, with_quality)
        return
    with os_errors_as_output_error("stdout"):
        _write(rows, strides, sys.stdout.buffer, format, with_quality)
        sys.stdout.buffer.flush()


@contextmanager
def atomic_output(path: Path) -> Iterator[BinaryIO]:
    """Open a file that takes its name only once complete; until then, or after a failure, the old one stays.

    Runs that write the same file at the same time take turns, and the last one wins. A link is followed, and the
    file it points to is replaced. Devices, pipes and open descriptors such as /dev/stdout are written directly:
    renaming would put a file in the place of the device.

    Args:
        path: file to write; its folder must exist.

    Yields:
        The file; do nothing but write while it is open, since any OSError is taken for one of this file.

    Raises:
        OutputError: the file cannot be written.
        BrokenPipeError: `path` is a pipe whose reader went away.
    """
    with os_errors_as_output_error(str(path)):
        if is_written_directly(path):
            with path.open("wb") as file:
                yield file
            return
        with open_partial(Path(os.path.realpath(path))) as file:
            yield file


def is_written_directly(path: Path) -> bool:
    """Tell a device, pipe or open descriptor from a file, which is replaced: a folder below /dev may hold files."""
    target = Path(os.path.realpath(path))
    return str(path.absolute()).startswith(_STREAMS) or (target.exists() and not target.is_file())


def write_to_stdout(content: bytes) -> None:
    """Write all of it to stdout.

    Raises:
        OutputError: that is not possible.
        BrokenPipeError: the reader went away.
    """
    with os_errors_as_output_error("stdout"):
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()


def read_paths(path: Path) -> list[tuple[str, float, bool]]:
    """Read a table that `write_table` wrote, perhaps filtered or sorted since.

    Args:
        path: table; its suffix says the format.

    Returns:
        (path, score, flagged) of every file that has a score, most anomalous first.

    Raises:
        InputError: the file cannot be read or is not such a table.
    """
    format = _by_suffix(path)
    check_library(format, InputError)
    with reading(str(path)), path.open("rb") as file:
        scored = [entry for record in read_records(file, format) if (entry := score_of(record)) is not None]
    return sorted(scored, key=lambda entry: (-entry[1], os.fsencode(entry[0])))


@contextmanager
def reading(name: str, kind: str = "a table of `anomaly score`") -> Iterator[None]:
    """Turn what goes wrong while a table is opened and read into one line.

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


def _by_suffix(path: Path | None) -> TableFormat:
    suffixes = {f".{known}": known for known in TableFormat} | {".ndjson": TableFormat.JSONL}
    return TableFormat.CSV if path is None else suffixes.get(path.suffix.lower(), TableFormat.CSV)


def check_library(format: TableFormat, error: type[AnomalyError]) -> None:
    """Raise the error where Parquet is asked for and pyarrow is missing."""
    if format is TableFormat.PARQUET and find_spec("pyarrow") is None:
        raise error("parquet needs pyarrow: pip install 'anomaly-cli[parquet]'")


@contextmanager
def os_errors_as_output_error(name: str) -> Iterator[None]:
    """Turn what goes wrong while `name` is written into one line; a reader that went away stays a BrokenPipeError."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"cannot write {name}: {error.strerror or error}") from error


def _columns(strides: Sequence[str], with_quality: bool) -> list[str]:
    fixed = "rank path score p_value q_value flagged status reason width height"
    region = "region_x region_y region_w region_h region_fraction"
    quality = _QUALITY if with_quality else ()
    return [*fixed.split(), *region.split(), *(f"scale_{name}" for name in strides), *quality]


def _rounded(value: float) -> float:
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}")


def _records(rows: Iterable[Row], strides: Sequence[str], with_quality: bool) -> Iterator[dict[str, Value]]:
    for position, row in enumerate(rank_rows(rows), start=1):
        yield _record(row, strides, with_quality, position if row.status == "ok" else None)


def _record(row: Row, strides: Sequence[str], with_quality: bool, rank: int | None) -> dict[str, Value]:
    columns = _columns(strides, with_quality)
    known: dict[str, Value] = {name: getattr(row, name) for name in columns if hasattr(row, name)}
    known["rank"] = rank
    if row.status == "ok":
        known |= {f"scale_{name}": value for name, value in zip(strides, row.scales, strict=True)}
    return {name: _rounded(v) if isinstance(v := known.get(name), float) else v for name in columns}


def to_json_line(row: Row, strides: Sequence[str], *, with_quality: bool = False) -> bytes:
    """Write one row as a line of JSON Lines, without a rank: the other rows are not known yet."""
    return _json_line(_record(row, strides, with_quality, None))


def _json_line(record: Mapping[str, Value]) -> bytes:
    # For a lone surrogate backslashreplace writes exactly the escape that JSON has for it.
    return json.dumps(record, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


def _write(
    rows: Iterable[Row], strides: Sequence[str], file: BinaryIO, format: TableFormat, with_quality: bool
) -> None:
    if format is TableFormat.PARQUET:
        frame = to_frame(rows, strides, with_quality=with_quality)
        frame["path"] = [path.encode("utf-8", "backslashreplace").decode() for path in frame["path"]]
        file.write(frame.to_parquet(None, engine="pyarrow", index=False))
    elif format is TableFormat.JSONL:
        file.writelines(_json_line(record) for record in _records(rows, strides, with_quality))
    else:
        writer = csv.writer(_UnixLines(file), delimiter=_DELIMITERS[format], lineterminator="\r\n")
        writer.writerow(_columns(strides, with_quality))
        for record in _records(rows, strides, with_quality):
            writer.writerow([_as_text(value) for value in record.values()])


class _UnixLines:
    """Sink that ends lines with a newline only.

    `csv` quotes just the line ends that it is told to write, but every reader takes a bare carriage return in
    a file name for the end of the row: so it is told both, and what it adds at the end is exchanged here.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file = file

    def write(self, line: str) -> None:
        self.file.write(line.removesuffix("\r\n").encode("utf-8", "surrogateescape") + b"\n")


def _as_text(value: Value) -> str:
    """Print a value for shell tools: booleans in lower case, no exponents, which `sort -n` misreads."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{Decimal(repr(value)):f}" if isinstance(value, float) else str(value)


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
            reader = csv.DictReader(text, delimiter=_DELIMITERS[format])
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
