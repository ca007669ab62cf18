"""Tiles: they cover a picture once, and their maps are those of the whole picture."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from anomaly_cli.detector import tiles
from anomaly_cli.detector.checkpoint import Model
from anomaly_cli.detector.features import scale_features
from anomaly_cli.detector.tiles import MARGIN, TILE, picture_scale, stitch, tiles_of


@pytest.mark.parametrize("size", [(32, 32), (32, 256), (TILE, TILE), (TILE + 32, 96), (3008, 4000), (160, 8000)])
def test_each_pixel_lies_in_one_core_a_margin_from_an_inner_side(size: tuple[int, int]) -> None:
    rows, columns = size
    seen = np.zeros((rows // 32, columns // 32), int)

    for tile in tiles_of(rows, columns):
        assert 0 <= tile.top <= tile.core_top < tile.core_bottom <= tile.top + tile.height <= rows
        assert 0 <= tile.left <= tile.core_left < tile.core_right <= tile.left + tile.width <= columns
        assert max(tile.height, tile.width) <= TILE
        assert all(value % 32 == 0 for value in tile)
        assert tile.top == 0 or tile.core_top - tile.top >= MARGIN
        assert tile.left + tile.width == columns or tile.left + tile.width - tile.core_right >= MARGIN
        seen[tile.core_top // 32 : tile.core_bottom // 32, tile.core_left // 32 : tile.core_right // 32] += 1

    assert (seen == 1).all()


def test_the_smallest_defect_spans_two_cells_of_the_anomaly_map() -> None:
    assert [size * picture_scale(size) / 8 for size in (4, 6, 100)] == [2, 2, 2]


@pytest.mark.usefixtures("float32_search")
def test_stitched_maps_are_those_of_the_whole_picture(loaded: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "TILE", 320)
    detector = loaded.detector
    pixels = torch.rand(1, 3, 448, 512, generator=torch.Generator().manual_seed(0))
    plan = tiles_of(448, 512)

    def part(tile: tiles.Tile) -> torch.Tensor:
        return pixels[:, :, tile.top : tile.top + tile.height, tile.left : tile.left + tile.width]

    stitched = stitch(
        detector.local_names, (448, 512), (tiles.measure_tile(detector, part(tile), tile) for tile in plan)
    )

    with torch.inference_mode():
        whole, _ = detector.compare(scale_features(detector.backbone, pixels, detector.local_names))
    assert len(plan) == 6
    for i, (found, expected) in enumerate(zip(stitched.maps, whole, strict=True)):
        torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)
        cell = int(stitched.peak_cells[0, i, 0])
        assert cell == int(found.argmax())


def test_ignored_cells_have_no_distance_and_no_peak(loaded: Model) -> None:
    detector = loaded.detector
    pixels = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    (tile,) = tiles_of(64, 96)
    inspected = {name: np.zeros((64 // step, 96 // step), bool) for name, step in (("4", 8), ("8", 8), ("16", 16))}
    for cells in inspected.values():
        cells[1, 1] = True

    stitched = stitch(detector.local_names, (64, 96), [tiles.measure_tile(detector, pixels, tile)], inspected)

    assert [int((~each.isnan()).sum()) for each in stitched.maps] == [1, 1, 1]
    assert stitched.peak_cells[0, :, 0].tolist() == [13, 13, 7]
