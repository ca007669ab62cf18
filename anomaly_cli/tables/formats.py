"""Formats of tables: chosen by option, suffix or content; whether their library is installed."""

from __future__ import annotations

import gzip
import zlib
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path

from anomaly_cli.errors import AnomalyError, ConfigError, OutputError
from anomaly_cli.files import is_written_directly

GZIP = b"\x1f\x8b"
UTF8_MARK, UTF16_MARKS = b"\xef\xbb\xbf", (b"\xff\xfe", b"\xfe\xff")


class TableFormat(StrEnum):
    """How a table is stored."""

    CSV = "csv"
    TSV = "tsv"
    JSONL = "jsonl"
    JSON = "json"
    PARQUET = "parquet"


SUFFIXES = {f".{known}": known for known in TableFormat} | {".ndjson": TableFormat.JSONL, "": TableFormat.CSV}


def format_of(path: Path | None, chosen: TableFormat | None = None, option: str = "--out") -> TableFormat:
    """Decide how a table is stored: as chosen, else by the suffix of its name, CSV if it has none.

    Raises:
        ConfigError: the suffix is of no format.
        OutputError: parquet was asked for and pyarrow is missing. Call this before the work.
    """
    decided = chosen or by_suffix(path)
    if decided is None:
        known = ", ".join(suffix for suffix in SUFFIXES if suffix)
        rule = "with .gz behind it, or --format" if option == "--out" else "with .gz behind it, or .coco.json"
        raise ConfigError(f"{path}: no table has this suffix; use one of {known}, {rule}")
    if decided is TableFormat.PARQUET and is_compressed(path):
        raise ConfigError(f"{path}: parquet compresses by itself, leave out .gz")
    check_library(decided, OutputError)
    return decided


def by_suffix(path: Path | None) -> TableFormat | None:
    """Choose the format of a table by the suffix of its name, before `.gz`; None if that says nothing."""
    if path is None or is_written_directly(path):
        return TableFormat.CSV
    return SUFFIXES.get((path.with_suffix("") if is_compressed(path) else path).suffix.lower())


def is_compressed(path: Path | None) -> bool:
    """Tell by the name whether a table is compressed by gzip."""
    return path is not None and path.suffix.lower() == ".gz"


def plain_content(content: bytes) -> bytes:
    """Undo gzip, UTF-16 and the byte order mark of spreadsheets: what is left is UTF-8 or Parquet.

    Raises:
        ValueError: the content is damaged.
    """
    if content.startswith(GZIP):
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError("damaged gzip file") from error
    if content.startswith(UTF16_MARKS):
        content = content.decode("utf-16").encode()
    return content.removeprefix(UTF8_MARK)


def format_of_content(content: bytes, path: Path) -> TableFormat:
    """Recognise the format of a table by its first bytes, that of an empty file by its name."""
    if not content:
        return by_suffix(path) or TableFormat.CSV
    if content.startswith(b"PAR1"):
        return TableFormat.PARQUET
    start = content.lstrip()[:1]
    if start in (b"{", b"["):
        return TableFormat.JSONL if start == b"{" else TableFormat.JSON
    return TableFormat.TSV if b"\t" in content.partition(b"\n")[0] else TableFormat.CSV


def delimiter_of(table_format: TableFormat, header: bytes) -> str:
    """Choose the delimiter of a text table: spreadsheets of many countries save CSV with semicolons."""
    if table_format is TableFormat.TSV:
        return "\t"
    return ";" if header.count(b";") > header.count(b",") else ","


def check_library(format: TableFormat, error: type[AnomalyError]) -> None:
    """Raise the error where Parquet is asked for and pyarrow is missing."""
    if format is TableFormat.PARQUET and find_spec("pyarrow") is None:
        raise error("parquet needs pyarrow: pip install 'anomaly-cli[parquet]'")
