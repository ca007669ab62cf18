"""Rows and tables of two scales."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from anomaly_cli.tables.formats import TableFormat
from anomaly_cli.tables.row import Row
from anomaly_cli.tables.writer import Table

STRIDES = ("4", "image")
TEXT_FORMATS = [TableFormat.CSV, TableFormat.TSV, TableFormat.JSONL]  # of one line per row


def scored(path: str, score: float, **changed: Any) -> Row:
    known: dict[str, Any] = {
        **{"p_value": 0.01, "q_value": 0.02, "flagged": score >= 1, "width": 640, "height": 480},
        **{
            "region_x": 1,
            "region_y": 2,
            "region_w": 3,
            "region_h": 4,
            "region_fraction": 0.25,
            "regions": 2,
            "region_from": "map",
        },
        "scales": (0.5, 0.125),
    }
    return Row(path=path, score=score, **(known | changed))


def unreadable(path: str, reason: str = "is empty") -> Row:
    return Row(path=path, status="unreadable", reason=reason)


def written(tmp_path: Path, rows: list[Row], format: TableFormat) -> bytes:
    out = tmp_path / f"table.{format}"
    Table(rows, STRIDES).write(out, format)
    return out.read_bytes()
