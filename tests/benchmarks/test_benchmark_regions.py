"""The benchmark of regions counts what its docstring says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from anomaly_cli.scoring.explained_map import RegionSource
from anomaly_cli.scoring.measure import Measured
from benchmarks.accuracy.regions import Counts

SIDE = 64  # pixels of the image; the map has 8 × 8 cells


def measured(*cells: tuple[int, int]) -> Measured:
    """Make a map that is 2 at these cells, 0.5 elsewhere."""
    anomaly_map = np.full((8, 8), 0.5, np.float32)
    for cell in cells:
        anomaly_map[cell] = 2
    pixels, none = np.zeros((SIDE, SIDE, 3), np.uint8), np.zeros((0, 2), np.int64)
    tops, names = np.zeros((8, 8), np.uint8), ("8",)
    return Measured(anomaly_map, np.ones(1), SIDE, SIDE, pixels, none, RegionSource.MAP, tops, names)


def mask(*pixels: tuple[int, int]) -> NDArray[np.bool_]:
    drawn = np.zeros((SIDE, SIDE), bool)
    for row, column in pixels:
        drawn[row, column] = True
    return drawn


def test_regions_that_touch_and_defects_that_are_found_are_counted() -> None:
    counts = Counts()
    counts.add(measured((1, 1)), mask((12, 12)))  # touches
    counts.add(measured((1, 1)), mask((40, 40)))  # does not
    counts.add(measured((1, 1)), mask((17, 12)))  # two pixels beside the box, which the dilation reaches
    counts.add(measured((1, 1), (5, 5)), mask((12, 12), (44, 44), (12, 60)))  # two of three defects
    counts.add(measured((1, 1), (5, 5)), mask())  # two false regions
    counts.add(measured(), mask())

    row = counts.row
    assert (row["anomalous"], row["touching"]) == (4, 0.75)
    assert row["defects"] == 3
    assert row["recall_at_limit"] == pytest.approx(2 / 3)
    assert row["false_regions_at_limit"] == 1.0
    # One region of the whole image at 0.5, two of one image above.
    assert (row["threshold_of_one_false"], row["recall_at_one_false"]) == (0.5, 1.0)


def test_the_threshold_of_one_false_region_is_the_lowest_above_which_there_are_never_more() -> None:
    counts = Counts()
    noisy = measured((1, 1), (5, 5)).anomaly_map
    noisy[0, 7], noisy[7, 0] = 0.8, 0.9
    counts.add(replace(measured(), anomaly_map=np.where(noisy == 2, 0.7, noisy)), mask())
    counts.add(measured((1, 1)), mask((12, 12), (60, 60)))

    assert counts.row["threshold_of_one_false"] == pytest.approx(0.81)
    assert counts.row["recall_at_one_false"] == 0.5
