"""Write ranked rows as a table, one complete file or none; imports nothing heavy."""

from __future__ import annotations

import csv
import gzip
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from decimal import Decimal
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from anomaly_cli.errors import OutputError
from anomaly_cli.files import atomic_output, os_errors_as_output_error
from anomaly_cli.tables.formats import TableFormat, check_library, delimiter_of, is_compressed
from anomaly_cli.tables.row import Row, Value, rank_rows, rounded

if TYPE_CHECKING:
    import pandas as pd


_COLUMNS = (
    *("rank", "path", "score", "p_value", "q_value", "flagged", "status", "reason", "width", "height"),
    *("region_x", "region_y", "region_w", "region_h", "region_fraction"),
)
_WHOLE_NUMBERS = (
    *("rank", "width", "height", "region_x", "region_y", "region_w", "region_h", "duplicate_group", "regions"),
    *("region", "x", "y", "w", "h", "area"),
)
_WORDS = ("path", "status", "reason", "content_hash", "scale", "region_from")
_QUALITY = ("aspect", "brightness", "contrast", "sharpness", "content_hash", "duplicate_group")


class Records:
    """Records of one run and the columns that they are written in: a table."""

    @property
    def columns(self) -> list[str]:
        """Names of the columns."""
        raise NotImplementedError

    def records(self) -> Iterator[dict[str, Value]]:
        """Records in the order of the table."""
        raise NotImplementedError

    def to_frame(self) -> pd.DataFrame:
        """Build the table as a data frame.

        Returns:
            One row per record. Missing whole numbers are `pd.NA`, missing fractions NaN. Words stay Python objects,
            because Arrow strings cannot hold a name that is not UTF-8.
        """
        import pandas as pd  # takes longer than all of `--help` may

        frame = pd.DataFrame(self.records(), columns=self.columns, dtype=object)
        kinds = {name: "Int64" if name in _WHOLE_NUMBERS else "float64" for name in self.columns if name not in _WORDS}
        return frame.astype(kinds | ({"flagged": "bool"} if "flagged" in self.columns else {}))

    def write(self, out: Path | None, format: TableFormat) -> None:
        r"""Write the table, as a complete file or not at all.

        A name that is not UTF-8 keeps its bytes in CSV and TSV. JSON must be valid Unicode: there a stray byte XX
        is the escape `\udcXX`, which Python's `json` turns back into what `os.fsencode` expects. In Parquet the
        same escape is plain text: good to recognise the file by, but it no longer opens it.

        Args:
            out: file to replace; None means stdout.
            format: see `format_of`.

        Raises:
            OutputError: `out` cannot be written, or pyarrow is missing.
            BrokenPipeError: the reader of a pipe went away.
        """
        check_library(format, OutputError)
        if out is not None:
            with atomic_output(out) as file, _compressed(file) if is_compressed(out) else nullcontext(file) as inner:
                self._write(inner, format)
            return
        with os_errors_as_output_error("stdout"):
            self._write(sys.stdout.buffer, format)
            sys.stdout.buffer.flush()

    def _write(self, file: BinaryIO, format: TableFormat) -> None:
        if format is TableFormat.PARQUET:
            frame = self.to_frame()
            frame["path"] = [path.encode("utf-8", "backslashreplace").decode() for path in frame["path"]]
            file.write(frame.to_parquet(None, engine="pyarrow", index=False))
        elif format is TableFormat.JSONL:
            file.writelines(map(json_line, self.records()))
        elif format is TableFormat.JSON:
            lines = (json_line(record).rstrip(b"\n") for record in self.records())
            file.writelines(chain([b"["], (b",\n"[not i :] + line for i, line in enumerate(lines)), [b"\n]\n"]))
        else:
            writer = csv.writer(_UnixLines(file), delimiter=delimiter_of(format, b""), lineterminator="\r\n")
            writer.writerow(self.columns)
            writer.writerows(map(_as_text, record.values()) for record in self.records())


@dataclass(frozen=True)
class Table(Records):
    """Rows of one run and the columns that they are written in.

    Attributes:
        rows: in any order.
        scale_names: finest first; scale "4" becomes column `scale_4`.
        with_quality: whether the quality columns follow.
    """

    rows: Sequence[Row]
    scale_names: Sequence[str]
    with_quality: bool = False

    @property
    def columns(self) -> list[str]:
        """Names of the columns."""
        quality = _QUALITY if self.with_quality else ()
        return [*_COLUMNS, *(f"scale_{name}" for name in self.scale_names), *quality, "regions", "region_from"]

    def record(self, row: Row, rank: int | None = None) -> dict[str, Value]:
        """Values of one row by column, numbers rounded to six significant digits."""
        known: dict[str, Value] = {name: getattr(row, name, None) for name in self.columns}
        known["rank"] = rank
        if row.status == "ok":
            known |= {f"scale_{name}": value for name, value in zip(self.scale_names, row.scales, strict=True)}
        return {name: rounded(value) if isinstance(value, float) else value for name, value in known.items()}

    def records(self) -> Iterator[dict[str, Value]]:
        """Records of all rows in rank order."""
        for position, row in enumerate(rank_rows(self.rows), start=1):
            yield self.record(row, position if row.status == "ok" else None)


def _compressed(file: BinaryIO) -> BinaryIO:
    # No name and no time, so that the same rows give the same bytes.
    return cast(BinaryIO, gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0))


def json_line(record: Mapping[str, Value]) -> bytes:
    """Write one record as a line of JSON Lines."""
    # For a lone surrogate backslashreplace writes exactly the escape that JSON has for it.
    return json.dumps(record, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


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
