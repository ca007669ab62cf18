"""An estimate with its interval."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Interval:
    """A point estimate and the ends of its 95 % interval, all in [0, 1]."""

    value: float
    low: float
    high: float
