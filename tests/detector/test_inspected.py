"""Cells outside a region of interest: compared with twins that never had them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from anomaly_cli.detector.checkpoint import Model
from anomaly_cli.detector.inspected import fuse_inspected, inspected_cells, pool_inspected


@pytest.fixture
def half() -> Tensor:
    """(1, 64, 64) with the left half inspected."""
    inspected = torch.zeros(1, 64, 64, dtype=torch.bool)
    inspected[:, :, :32] = True
    return inspected


def test_a_cell_is_inspected_where_half_of_it_is() -> None:
    inspected = torch.zeros(1, 8, 8, dtype=torch.bool)
    inspected[0, :, :2] = True  # half of the first column of cells
    inspected[0, 0, 4] = True  # a sixteenth of a cell

    assert inspected_cells(inspected, 2, 2)[0].tolist() == [[True, False], [True, False]]


def test_where_no_cell_is_half_inspected_the_best_are() -> None:
    inspected = torch.zeros(2, 8, 8, dtype=torch.bool)
    inspected[:, 0, 0] = True
    inspected[1, 4:, 4:] = True

    cells = inspected_cells(inspected, 2, 2)

    assert cells[0].tolist() == [[True, False], [False, False]]
    assert cells[1].tolist() == [[False, False], [False, True]]


def test_pooling_the_inspected_cells_is_pooling_an_image_of_them_alone(half: Tensor) -> None:
    feature_map = torch.randn(1, 5, 4, 4, generator=torch.Generator().manual_seed(0))

    mean, spread = pool_inspected([feature_map], half)

    kept = feature_map[..., :2].flatten(2)
    torch.testing.assert_close(mean[..., 0], kept.mean(dim=2, keepdim=True))
    torch.testing.assert_close(spread[..., 0], kept.std(dim=2, keepdim=True, correction=0))


def test_a_fused_cell_is_the_mean_of_the_scales_that_inspect_it() -> None:
    fine = torch.tensor([[[2.0, 2.0], [2.0, torch.nan]]])
    coarse = torch.tensor([[[torch.nan]]])

    fused = fuse_inspected([fine, coarse], [torch.tensor(1.0), torch.tensor(3.0)], fine)

    torch.testing.assert_close(fused, fine, equal_nan=True)


def test_an_image_without_ignored_pixels_is_measured_as_without_a_region(loaded: Model) -> None:
    images = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))

    plain = loaded.detector(images)
    all_inspected = loaded.detector(images, torch.ones(2, 64, 96, dtype=torch.bool))

    torch.testing.assert_close(all_inspected.anomaly_maps, plain.anomaly_maps)
    torch.testing.assert_close(all_inspected.deviations, plain.deviations, rtol=1e-4, atol=1e-4)


def test_deviations_are_those_of_the_inspected_cells(loaded: Model, half: Tensor) -> None:
    detector = loaded.detector
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))

    maps = detector.distance_maps(images, half)
    detection = detector(images, half)

    whole = detector.distance_maps(images)
    for name, masked, full in zip(detector.scale_names, maps, whole, strict=True):
        if masked.shape[-1] > 1:
            w = masked.shape[-1] // 2
            torch.testing.assert_close(masked[..., :w], full[..., :w])
            assert masked[..., w:].isnan().all()
            column = detector.deviation_names.index(name)
            assert detection.deviations[0, column] <= full[..., :w].max() + 1e-5
    assert detection.anomaly_maps.isnan().float().mean() == 0.5
    assert detection.peak_cells is not None
    assert all(int(cell) % w < w // 2 for (cell, _), w in zip(detection.peak_cells[0], (8, 8, 4), strict=True))
    assert detection.deviations.isfinite().all()


def test_a_descriptor_is_that_of_the_inspected_cells(loaded: Model, half: Tensor) -> None:
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    both = torch.cat([half, torch.ones_like(half)])

    described = loaded.detector.descriptors(images, both)

    assert described.isfinite().all()
    torch.testing.assert_close(described[1:], loaded.detector.descriptors(images[1:]), rtol=1e-3, atol=1e-3)
    assert not torch.allclose(described[:1], loaded.detector.descriptors(images[:1]), rtol=1e-3, atol=1e-3)
