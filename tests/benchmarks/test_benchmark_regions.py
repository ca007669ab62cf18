"""The benchmark of regions counts what its docstring says."""

from __future__ import annotations

import numpy as np
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
    return Measured(anomaly_map, np.ones(1), SIDE, SIDE, pixels, none, RegionSource.MAP)


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

    assert (counts.anomalous, counts.touching) == (4, 3)
    assert (counts.several, counts.several_found) == (3, 2)
    assert (counts.normal, counts.false_regions) == (2, 2)
