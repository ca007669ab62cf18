"""The methods that are compared: each finds what is easy to find, and the numeric parts equal slow twins."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmark_sets import SIDE, write_texture_set
from PIL import Image

from anomaly_cli.config import DetectorConfig
from anomaly_cli.images.decode import load_image
from anomaly_cli.scoring import score as scoring
from anomaly_cli.scoring.pixels import to_tensor
from anomaly_cli.training import train as training
from benchmarks.accuracy import anomalib_methods, methods, peers
from benchmarks.accuracy.datasets import AnomalySet, read_mvtec
from benchmarks.accuracy.quality import quiet

SETTINGS = methods.Settings(image_size=SIDE)


@pytest.fixture(scope="module")
def textures(tmp_path_factory: pytest.TempPathFactory) -> AnomalySet:
    return read_mvtec(write_texture_set(tmp_path_factory.mktemp("sets") / "texture"))


def test_every_installed_method_has_a_name_and_a_place_in_the_comparison() -> None:
    installed = peers.installed_methods()

    assert installed[0] == "ours"
    assert set(installed) <= set(peers.ALL_METHODS)
    assert ("anomalib_patchcore" in installed) is anomalib_methods.available()


@pytest.mark.parametrize("name", ["ours", "prototypes", "gaussian"])
def test_methods_with_a_map_find_a_square_and_where_it_is(name: str, textures: AnomalySet) -> None:
    [row] = peers.measure(peers.Job(textures, name, SETTINGS))

    assert (row["set"], row["seed"], row["method"], row["normals"], row["tested"]) == ("texture", 0, name, 9, 12)
    assert float(row["image_auroc"]) > 0.9
    assert float(row["pixel_auroc"]) > 0.7
    assert {"aupro", "train_s", "images_per_s", "peak_mb"} <= set(row)


@pytest.mark.parametrize("name", ["isolation_forest", "lof"])
def test_methods_on_pooled_features_rank_and_have_no_map(name: str, textures: AnomalySet) -> None:
    [row] = peers.measure(peers.Job(textures, name, SETTINGS))

    assert float(row["image_auroc"]) > 0.7
    assert "pixel_auroc" not in row


def test_the_score_of_ours_is_that_of_the_table(textures: AnomalySet, tmp_path: Path) -> None:
    paths = [image.path for image in textures.test]
    model = tmp_path / "model.safetensors"
    training.train(textures.normal, model, DetectorConfig(image_size=SIDE), progress=quiet)

    judged = methods.ours(textures.normal, SETTINGS)(paths)

    scores = {Path(row.path): row.score for row in scoring.score(paths, model, progress=quiet).rows}
    assert [each.score for each in judged] == [scores[path] for path in paths]


def test_averaged_components_are_their_weighted_mean(textures: AnomalySet, tmp_path: Path) -> None:
    path = textures.test[0].path
    model = training.train(
        textures.normal, tmp_path / "model.safetensors", DetectorConfig(image_size=SIDE), progress=quiet
    ).model

    [judged] = methods.ours_averaged(textures.normal, SETTINGS)([path])

    deviations = model.detector(to_tensor(load_image(path, SIDE))).deviations[0].tolist()
    parts = zip(
        deviations, model.calibration.location, model.calibration.spread, model.calibration.weights, strict=True
    )
    expected = sum(weight * (math.log(value) - location) / spread for value, location, spread, weight in parts)
    assert judged.score == pytest.approx(float(expected), abs=1e-3)


@pytest.mark.skipif(not anomalib_methods.available(), reason="anomalib is not installed")
@pytest.mark.parametrize("name", anomalib_methods.ANOMALIB_METHODS)
@pytest.mark.filterwarnings("default")
def test_anomalib_takes_our_backbone_and_finds_a_square(name: str, textures: AnomalySet) -> None:
    settings = methods.Settings(image_size=SIDE, coreset_ratio=0.5)

    [row] = peers.measure(peers.Job(textures, name, settings))

    assert float(row["image_auroc"]) > 0.9
    assert float(row["pixel_auroc"]) > 0.7


def test_mahalanobis_equals_a_slow_twin() -> None:
    cells = torch.randn(30, 4, 3, generator=torch.Generator().manual_seed(0))

    means, precisions = methods.fit_gaussians(cells)
    distances = methods.mahalanobis(cells[0], means, precisions)

    for position in range(4):
        seen = cells[:, position].double().numpy()
        covariance = np.cov(seen.T) + methods.GAUSSIAN_RIDGE * np.eye(3)
        offset = seen[0] - seen.mean(0)
        expected = np.sqrt(offset @ np.linalg.inv(covariance) @ offset)
        assert float(distances[position]) == pytest.approx(expected, rel=1e-4)


def test_an_image_of_another_shape_is_squashed_to_a_square(tmp_path: Path) -> None:
    Image.new("RGB", (200, 80), (255, 0, 0)).save(tmp_path / "wide.png")

    image, pixels = methods.load_square(tmp_path / "wide.png", SIDE)

    assert (image.height, image.width) == (80, 200)
    assert pixels.shape == (1, 3, SIDE, SIDE)
    assert pixels[0, :, 5, 5].tolist() == [1, 0, 0]
