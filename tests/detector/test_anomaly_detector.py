"""The detector on a tiny random backbone: features, distances and fusion against loops over single cells."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_cli.detector.anomaly_detector import MIN_DEVIATION, TOP_CELL_FRACTION, AnomalyDetector, ScaleModel
from anomaly_cli.detector.backbones.backbone import Backbone
from anomaly_cli.detector.features import scale_features
from anomaly_cli.detector.memory import PrototypeMemory
from anomaly_cli.detector.scales import COARSE_SCALE, IMAGE_SCALE, SMALL_SCALE
from anomaly_cli.detector.whitening import Whitening

pytestmark = pytest.mark.usefixtures("float32_search")

NAMES = ("4", "8", "16", IMAGE_SCALE)
WIDTHS = {4: 3, 8: 4, 16: 5, 32: 6}


class TinyNetwork(nn.Module):
    """One convolution a stride, each reading the one before."""

    def __init__(self) -> None:
        super().__init__()
        widths = [3, *WIDTHS.values()]
        self.layers = nn.ModuleList(
            nn.Conv2d(a, b, step, step) for a, b, step in zip(widths, widths[1:], (4, 2, 2, 2), strict=False)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for layer in self.layers:
            x = torch.tanh(2 * layer(x))
            maps.append(x)
        return maps


def tiny_backbone(strides: tuple[int, ...] = tuple(WIDTHS)) -> Backbone:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return Backbone("tiny", TinyNetwork(), strides).eval()


def random_images(count: int, height: int = 64, width: int = 64, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


def trained_scale(cells: Tensor, count: int = 6) -> ScaleModel:
    scale = ScaleModel(Whitening.fit(cells))
    scale.memory = PrototypeMemory(scale.whitening(cells)[:count])
    return scale


def tiny_detector(names: tuple[str, ...] = NAMES) -> AnomalyDetector:
    backbone = tiny_backbone()
    with torch.inference_mode():
        features = scale_features(backbone, random_images(12, seed=1), names)
    scales = {name: trained_scale(f.permute(0, 2, 3, 1).flatten(0, 2).clone()) for name, f in features.items()}
    detector = AnomalyDetector(backbone, scales).eval()
    for i, name in enumerate(names, start=1):
        detector.scale(name).cell_mean.fill_(0.3 * i)
        detector.scale(name).weight.fill_(1 + i)
    return detector


def slow_local_cell(feature_map: Tensor, y: int, x: int, stride: int) -> Tensor:
    """Cell of row y and column x of the grid on which maps are: 8 pixels a cell, or the stride where it is coarser."""
    _, h, w = feature_map.shape
    if stride == 4:
        cell = torch.stack([feature_map[:, 2 * y + i, 2 * x + j] for i in (0, 1) for j in (0, 1)]).mean(0)
    elif stride == 8:
        around = [
            feature_map[:, row, column]
            for row in range(max(0, y - 1), min(h, y + 2))
            for column in range(max(0, x - 1), min(w, x + 2))
        ]
        cell = (feature_map[:, y, x] + torch.stack(around).mean(0)) / 2
    else:
        cell = feature_map[:, y, x]
    unit: Tensor = cell / cell.norm()
    return unit


def slow_distance(scale: ScaleModel, cell: Tensor) -> float:
    embedding = (cell - scale.whitening.mean).double() @ scale.whitening.matrix.double()
    return min(float((embedding - prototype.double()).norm()) for prototype in scale.memory.prototypes)


def slow_top_cells_mean(cells: Tensor) -> float:
    ordered: list[float] = sorted(cells.flatten().tolist(), reverse=True)
    count = max(1, round(TOP_CELL_FRACTION * len(ordered)))
    return sum(ordered[:count]) / count


@torch.inference_mode()
def test_distance_maps_equal_a_loop_over_cells() -> None:
    detector, images = tiny_detector(), random_images(2, 64, 96, seed=2)
    raw = dict(zip(WIDTHS, detector.backbone(images), strict=True))

    maps = dict(zip(NAMES, detector.distance_maps(images), strict=True))

    for name in detector.local_names:
        N, h, w = maps[name].shape
        expected = [
            slow_distance(detector.scale(name), slow_local_cell(raw[int(name)][n], y, x, int(name)))
            for n in range(N)
            for y in range(h)
            for x in range(w)
        ]
        torch.testing.assert_close(maps[name], torch.tensor(expected).view(N, h, w), rtol=1e-4, atol=1e-4)
    for n in range(2):
        cell = torch.cat([raw[16][n].mean((1, 2)), raw[32][n].mean((1, 2)), raw[16][n].std((1, 2), unbiased=False)])
        expected_image = slow_distance(detector.scale(IMAGE_SCALE), cell)
        assert float(maps[IMAGE_SCALE][n]) == pytest.approx(expected_image, rel=1e-4, abs=1e-4)


@torch.inference_mode()
def test_the_small_scale_is_the_image_scale_of_the_averaged_copy() -> None:
    backbone, images = tiny_backbone(), random_images(2, 192, 288, seed=5)
    copy = torch.stack([slow_box_average(image, 2) for image in images])

    small = scale_features(backbone, images, (SMALL_SCALE,))[SMALL_SCALE]

    assert tuple(small.shape) == (2, WIDTHS[16] + WIDTHS[32] + WIDTHS[16], 1, 1)
    torch.testing.assert_close(small, scale_features(backbone, copy, (IMAGE_SCALE,))[IMAGE_SCALE])


@torch.inference_mode()
@pytest.mark.parametrize("names", [(SMALL_SCALE, COARSE_SCALE), (COARSE_SCALE,)])
def test_coarse_cells_are_those_of_the_small_copy_or_of_an_image_without_one(names: tuple[str, ...]) -> None:
    backbone, images = tiny_backbone(), random_images(2, 192, 288, seed=5)
    seen = torch.stack([slow_box_average(image, 2) for image in images]) if SMALL_SCALE in names else images
    raw = dict(zip(backbone.strides, backbone(seen), strict=True))[16]

    coarse = scale_features(backbone, images, names)[COARSE_SCALE]

    for image, cells in zip(raw, coarse, strict=True):
        for row, column in itertools.product(range(image.shape[1]), range(image.shape[2])):
            cell = image[:, row, column]
            torch.testing.assert_close(cells[:, row, column], cell / cell.norm(), atol=1e-5, rtol=1e-4)


def test_the_deviation_of_coarse_cells_is_the_mean_of_the_largest_twentieth() -> None:
    scales = {name: ScaleModel(Whitening(torch.zeros(3), torch.eye(3))) for name in ("8", COARSE_SCALE)}
    maps = [torch.rand(2, 6, 10) + 1 for _ in scales]

    deviations = AnomalyDetector(tiny_backbone(), scales).combine(maps).deviations

    for n in range(2):
        largest = sorted(maps[1][n].flatten().tolist(), reverse=True)
        assert float(deviations[n, 2]) == pytest.approx(sum(largest[:3]) / 3)
        assert float(deviations[n, 0]) == pytest.approx(float(maps[0][n].max()))  # of the map one cell, and one scale


def slow_box_average(image: Tensor, by: int) -> Tensor:
    _, height, width = image.shape
    rows = [image[:, y : y + by].mean(1) for y in range(0, height, by)]
    reduced = torch.stack(rows, dim=1)
    return torch.stack([reduced[:, :, x : x + by].mean(2) for x in range(0, width, by)], dim=2)


def test_each_distance_map_has_a_cell_every_8_pixels_or_every_stride_where_that_is_more() -> None:
    maps = tiny_detector().distance_maps(random_images(2, 64, 96))

    assert [tuple(m.shape) for m in maps] == [(2, 8, 12), (2, 8, 12), (2, 4, 6), (2, 1, 1)]
    assert all((m >= 0).all() for m in maps)


def test_a_batch_of_images_equals_the_images_one_by_one() -> None:
    detector, images = tiny_detector(), random_images(5, 64, 96, seed=3)

    batch = detector(images)
    single = [detector(image[None]) for image in images]

    torch.testing.assert_close(batch.anomaly_maps, torch.cat([s.anomaly_maps for s in single]), rtol=0, atol=1e-5)
    torch.testing.assert_close(batch.deviations, torch.cat([s.deviations for s in single]), rtol=0, atol=1e-5)


def test_permuting_images_permutes_their_measurements() -> None:
    detector, images = tiny_detector(), random_images(5, seed=3)
    order = torch.tensor([3, 0, 4, 1, 2])

    straight, permuted = detector(images), detector(images[order])

    torch.testing.assert_close(permuted.anomaly_maps, straight.anomaly_maps[order], rtol=0, atol=1e-5)
    torch.testing.assert_close(permuted.deviations, straight.deviations[order], rtol=0, atol=1e-5)


@torch.inference_mode()
def test_a_cell_stored_as_prototype_is_at_distance_zero() -> None:
    detector, image = tiny_detector(), random_images(1, seed=4)
    for name, features in scale_features(detector.backbone, image, NAMES).items():
        cells = features[0].flatten(1).T
        detector.scale(name).memory = PrototypeMemory(detector.scale(name).whitening(cells))

    maps = detector.distance_maps(image)

    for distances in maps:
        torch.testing.assert_close(distances, torch.zeros_like(distances), rtol=0, atol=1e-5)


def test_a_change_of_some_pixels_leaves_distant_cells_alone() -> None:
    detector, image = tiny_detector(), random_images(1, seed=5)
    changed = image.clone()
    changed[..., :4, :4] = 1 - changed[..., :4, :4]

    before, after = (detector.distance_maps(each)[0][0] for each in (image, changed))

    assert not torch.equal(before[:2, :2], after[:2, :2])
    torch.testing.assert_close(before[2:], after[2:], rtol=0, atol=1e-5)
    torch.testing.assert_close(before[:, 2:], after[:, 2:], rtol=0, atol=1e-5)


def test_fusion_is_the_weighted_mean_of_maps_relative_to_normal_cells_on_the_finest_grid() -> None:
    detector = tiny_detector()
    maps = detector.distance_maps(random_images(2, 64, 96))

    fused = detector.combine(maps).anomaly_maps

    expected = torch.zeros(2, 8, 12)
    for name, distances, mean, weight in zip(NAMES[:3], maps[:3], (0.3, 0.6, 0.9), (2, 3, 4), strict=True):
        assert detector.scale(name).weight == weight
        enlarged = F.interpolate(distances[:, None] / mean, (8, 12), mode="bilinear", align_corners=False)[:, 0]
        expected += weight / 9 * enlarged
    torch.testing.assert_close(fused, expected)


def test_deviations_are_the_mean_of_the_top_cells() -> None:
    detector = tiny_detector()
    maps = detector.distance_maps(random_images(3, 64, 96))

    detection = detector.combine(maps)

    for n in range(3):
        expected = [
            slow_top_cells_mean(detection.anomaly_maps[n]),
            *(slow_top_cells_mean(distances[n]) for distances in maps),
        ]
        torch.testing.assert_close(detection.deviations[n], torch.tensor(expected), rtol=1e-5, atol=1e-5)


def test_there_is_one_deviation_a_name_and_each_is_positive() -> None:
    detector = tiny_detector()
    maps = [torch.zeros(2, 8, 8), torch.zeros(2, 8, 8), torch.zeros(2, 4, 4), torch.zeros(2, 1, 1)]

    deviations = detector.combine(maps).deviations

    assert detector.deviation_names == ("map", *NAMES)
    assert deviations.shape == (2, 5)
    assert (deviations >= MIN_DEVIATION).all()


@pytest.mark.parametrize("names", [("4",), ("16", "4"), ("8", IMAGE_SCALE)])
def test_any_choice_of_scales_gives_a_map_on_its_finest_grid(names: tuple[str, ...]) -> None:
    detector = tiny_detector(names)
    finest = 64 // max(8, min(int(name) for name in detector.local_names))

    detection = detector(random_images(2))

    assert detection.anomaly_maps.shape == (2, finest, finest)
    assert detection.deviations.shape == (2, 1 + len(names))


def test_a_more_anomalous_cell_raises_map_and_deviations_of_its_image_only() -> None:
    detector = tiny_detector()
    maps = detector.distance_maps(random_images(2))
    hotter = [m.clone() for m in maps]
    hotter[1][0, 3, 3] += 30

    before, after = detector.combine(maps), detector.combine(hotter)

    assert (after.deviations[0, [0, 2]] > before.deviations[0, [0, 2]]).all()
    assert after.anomaly_maps[0].max() == after.anomaly_maps[0, 3, 3]
    assert torch.equal(after.anomaly_maps[1], before.anomaly_maps[1])
    assert torch.equal(after.deviations[1], before.deviations[1])


@torch.inference_mode()
def test_scale_features_have_the_shapes_of_their_strides() -> None:
    features = scale_features(tiny_backbone(), random_images(2, 64, 96), NAMES)

    assert {name: tuple(f.shape) for name, f in features.items()} == {
        "4": (2, 3, 8, 12),
        "8": (2, 4, 8, 12),
        "16": (2, 5, 4, 6),
        IMAGE_SCALE: (2, 5 + 6 + 5, 1, 1),
    }


@pytest.mark.parametrize("stride", [4, 8, 16])
@torch.inference_mode()
def test_fine_local_cells_are_averaged_inside_the_map_and_all_have_length_one(stride: int) -> None:
    backbone, images = tiny_backbone(), random_images(1)
    raw = dict(zip(WIDTHS, backbone(images), strict=True))[stride][0]

    cells = scale_features(backbone, images, (str(stride),))[str(stride)][0]

    for y in range(64 // max(8, stride)):
        for x in range(64 // max(8, stride)):
            torch.testing.assert_close(cells[:, y, x], slow_local_cell(raw, y, x, stride))


@torch.inference_mode()
def test_the_image_scale_pools_means_of_the_coarse_maps_and_the_spread_of_the_first() -> None:
    backbone, images = tiny_backbone(), random_images(2)
    maps = dict(zip(WIDTHS, backbone(images), strict=True))

    pooled = scale_features(backbone, images, (IMAGE_SCALE,))[IMAGE_SCALE][:, :, 0, 0]

    torch.testing.assert_close(pooled[:, :5], maps[16].flatten(2).mean(2))
    torch.testing.assert_close(pooled[:, 5:11], maps[32].flatten(2).mean(2))
    torch.testing.assert_close(pooled[:, 11:], maps[16].flatten(2).var(2, unbiased=False).sqrt())


@torch.inference_mode()
def test_without_coarse_maps_the_image_scale_pools_the_coarsest() -> None:
    class TwoFinest(TinyNetwork):
        def forward(self, x: Tensor) -> list[Tensor]:
            return super().forward(x)[:2]

    backbone = Backbone("fine", TwoFinest(), (4, 8)).eval()
    images = random_images(2)

    pooled = scale_features(backbone, images, (IMAGE_SCALE,))[IMAGE_SCALE]

    assert pooled.shape == (2, 2 * WIDTHS[8], 1, 1)
    torch.testing.assert_close(pooled[:, :4, 0, 0], backbone(images)[1].mean((2, 3)))


@torch.inference_mode()
def test_the_image_scale_ignores_where_things_are() -> None:
    backbone, images = tiny_backbone(), random_images(1)
    shifted = images.roll(32, dims=3)  # a multiple of every stride, and no layer looks beyond its cell

    features = [scale_features(backbone, each, (IMAGE_SCALE,))[IMAGE_SCALE] for each in (images, shifted)]

    torch.testing.assert_close(features[0], features[1])
