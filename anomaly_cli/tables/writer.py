"""Write ranked rows as a table, one complete file or none; imports nothing heavy."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from anomaly_cli.errors import OutputError
from anomaly_cli.files import atomic_output, os_errors_as_output_error
from anomaly_cli.tables.formats import DELIMITERS, TableFormat, check_library
from anomaly_cli.tables.row import Row, Value, rank_rows, rounded

if TYPE_CHECKING:
    import pandas as pd


_WHOLE_NUMBERS = ("rank", "width", "height", "region_x", "region_y", "region_w", "region_h", "duplicate_group")
_WORDS = ("path", "status", "reason", "content_hash")
_QUALITY = ("aspect", "brightness", "contrast", "sharpness", "content_hash", "duplicate_group")


def to_frame(rows: Iterable[Row], strides: Sequence[str], *, with_quality: bool = False) -> pd.DataFrame:
    """Build the ranked table as a data frame.

    Args:
        rows: in any order.
        strides: name of each scale, finest first; scale "4" becomes column `scale_4`.
        with_quality: whether the quality columns follow.

    Returns:
        One row per file, numbers rounded to six significant digits. Missing whole numbers are `pd.NA`, missing
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
        BrokenPipeError: the reader of a pipe went away.
    """
    check_library(format, OutputError)
    if out is not None:
        with atomic_output(out) as file:
            _write(rows, strides, file, format, with_quality)
        return
    with os_errors_as_output_error("stdout"):
        _write(rows, strides, sys.stdout.buffer, format, with_quality)
        sys.stdout.buffer.flush()


def _columns(strides: Sequence[str], with_quality: bool) -> list[str]:
    fixed = "rank path score p_value q_value flagged status reason width height"
    region = "region_x region_y region_w region_h region_fraction"
    quality = _QUALITY if with_quality else ()
    return [*fixed.split(), *region.split(), *(f"scale_{name}" for name in strides), *quality]


def _records(rows: Iterable[Row], strides: Sequence[str], with_quality: bool) -> Iterator[dict[str, Value]]:
    for position, row in enumerate(rank_rows(rows), start=1):
        yield _record(row, strides, with_quality, position if row.status == "ok" else None)


def _record(row: Row, strides: Sequence[str], with_quality: bool, rank: int | None) -> dict[str, Value]:
    columns = _columns(strides, with_quality)
    known: dict[str, Value] = {name: getattr(row, name) for name in columns if hasattr(row, name)}
    known["rank"] = rank
    if row.status == "ok":
        known |= {f"scale_{name}": value for name, value in zip(strides, row.scales, strict=True)}
    return {name: rounded(v) if isinstance(v := known.get(name), float) else v for name in columns}


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
        writer = csv.writer(_UnixLines(file), delimiter=DELIMITERS[format], lineterminator="\r\n")
        writer.writerow(_columns(strides, with_quality))
        for record in _records(rows, strides, with_quality):
            writer.writerow([_as_text(value) for value in record.values()])


class _UnixLines:
    """Sink that ends lines with a newline only.

    `csv` quotes a line end in a value only if it writes that line end itself, but every reader takes a bare carriage
    return for the end of a row. So it writes both, and the end of each line is replaced here.
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
