"""One row of a table: its values, their rounding and the order of rows."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Literal, NamedTuple, Self

SIGNIFICANT_DIGITS = 6  # float32 carries 7; the last one differs between processors

Value = str | int | float | bool | None

Outline = tuple[
    tuple[float, ...], ...
]  # polygons x1, y1, x2, y2, … in pixels of the file; together they are the region


class RegionRow(NamedTuple):
    """A connected region of an anomaly map, in pixels of the file."""

    x: int
    y: int
    w: int
    h: int
    area: int
    area_fraction: float  # of the anomaly map, in (0, 1]
    peak: float  # largest map value, 1.0 = the limit of normal
    mean: float
    scale: str  # the scale that adds most to the map at the peak
    outline: Outline = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """The result for one file; of an unreadable one only `path`, `status` and `reason` are known."""

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
    scales: tuple[float, ...] = ()  # calibrated deviation at each scale, finest first
    aspect: float | None = None  # width / height; this and what follows as in `quality.Quality`
    brightness: float | None = None
    contrast: float | None = None
    sharpness: float | None = None
    content_hash: str | None = None
    perceptual_hash: str | None = None  # no column: what `duplicate_group` is found by
    duplicate_group: int | None = None  # equal for files that are copies or near-copies of each other
    regions: int | None = None  # number of regions at or above the threshold
    region_from: str | None = None  # what places the region of the row: its anomaly map, or a pooled scale (image)
    region_list: tuple[RegionRow, ...] = ()  # highest peak first; empty unless they are asked for

    def __post_init__(self) -> None:
        if (self.status == "ok") != (self.score is not None and math.isfinite(self.score)):
            raise ValueError(f"a row is ok exactly if its score is finite, got {self.status}, {self.score}")

    def to_json(self) -> str:
        """Write all fields in ASCII, with every digit and whatever the name holds."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote.

        Raises:
            KeyError, TypeError, ValueError: it is damaged.
        """
        values = json.loads(text)
        regions = tuple(
            RegionRow._make([*known, tuple(map(tuple, outline))]) for *known, outline in values["region_list"]
        )
        return cls(**values | {"scales": tuple(values["scales"]), "region_list": regions})


def rank_rows(rows: Iterable[Row]) -> list[Row]:
    """Order rows by falling score as printed, ties by the bytes of the path; unreadable ones last by path."""

    def place(row: Row) -> tuple[float, bytes]:
        return (math.inf if row.score is None else -rounded(row.score), os.fsencode(row.path))

    return sorted(rows, key=place)


def rounded(value: float) -> float:
    """Round a value to the digits that the table shows."""
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}")
