"""Formats of tables: chosen by option, suffix or content; whether their library is installed."""

from __future__ import annotations

from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path

from anomaly_cli.errors import AnomalyError, OutputError


def format_of_content(content: bytes, path: Path) -> TableFormat:
    """Recognise the format of a table by its first bytes, that of an empty file by its name."""
    if not content:
        return by_suffix(path)
    if content.startswith(b"PAR1"):
        return TableFormat.PARQUET
    if content.lstrip().startswith(b"{"):
        return TableFormat.JSONL
    return TableFormat.TSV if b"\t" in content.partition(b"\n")[0] else TableFormat.CSV


DELIMITERS = {"csv": ",", "tsv": "\t"}


class TableFormat(StrEnum):
    """How a table is stored."""

    CSV = "csv"
    TSV = "tsv"
    JSONL = "jsonl"
    PARQUET = "parquet"


def format_of(path: Path | None, chosen: TableFormat | None = None) -> TableFormat:
    """Decide how a table is stored: as chosen, else by the suffix of its name, else CSV.

    Raises:
        OutputError: parquet was asked for and pyarrow is missing. Call this before the work.
    """
    decided = chosen or by_suffix(path)
    check_library(decided, OutputError)
    return decided


def by_suffix(path: Path | None) -> TableFormat:
    """Choose the format of a table by the suffix of its name; CSV where that says nothing."""
    suffixes = {f".{known}": known for known in TableFormat} | {".ndjson": TableFormat.JSONL}
    return TableFormat.CSV if path is None else suffixes.get(path.suffix.lower(), TableFormat.CSV)


def check_library(format: TableFormat, error: type[AnomalyError]) -> None:
    """Raise the error where Parquet is asked for and pyarrow is missing."""
    if format is TableFormat.PARQUET and find_spec("pyarrow") is None:
        raise error("parquet needs pyarrow: pip install 'anomaly-cli[parquet]'")
