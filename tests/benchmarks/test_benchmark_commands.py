"""The benchmark commands end to end on made-up pictures: they run, and what is easy to find is found."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from benchmark_sets import SIDE, write_texture_set
from packing import pack
from PIL import Image
from torch import Tensor

from anomaly_cli.config import DetectorConfig, Effort
from benchmarks.accuracy import quality
from benchmarks.accuracy.datasets import read_mvtec, read_packed
from benchmarks.accuracy.textures import write_textures
from pretraining import evaluate


@pytest.fixture(scope="module")
def textures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Textures in MVTec layout; the anomalous ones have a white square, which their masks show."""
    return write_texture_set(tmp_path_factory.mktemp("sets") / "texture")


def pyramid(images: Tensor) -> dict[str, Tensor]:
    """Mean and mean square of the colours at three strides: enough to see a white square."""
    colours = torch.cat([images, images.square()], dim=1)
    return {str(stride): F.avg_pool2d(colours, stride) for stride in (4, 8, 16)}


def test_textures_are_seeded_and_every_tenth_has_a_blot(tmp_path: Path) -> None:
    first = write_textures(tmp_path / "first", 10, 32, seed=3)
    again = write_textures(tmp_path / "again", 10, 32, seed=3)
    other = write_textures(tmp_path / "other", 10, 32, seed=4)

    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]
    assert first[0].read_bytes() != other[0].read_bytes()
    assert len({path.read_bytes() for path in first}) == 10


def test_files_beyond_the_distinct_ones_are_links(tmp_path: Path) -> None:
    paths = write_textures(tmp_path, 120, 16)

    assert len(paths) == len(set(paths)) == 120
    assert paths[119].samefile(paths[19])


def test_quality_measures_an_easy_set(textures: Path) -> None:
    config = DetectorConfig(image_size=SIDE, prototypes=50, effort=Effort.QUICK)

    row = quality.measure(quality.Job(read_mvtec(textures), config, None))

    assert row["set"] == "texture"
    assert (row["normals"], row["tested"]) == (9, 12)
    assert float(row["image_auroc"]) > 0.9
    assert float(row["pixel_auroc"]) > 0.8
    assert {"train_s", "score_s", "peak_mb", "average_precision", "f1_max", "fpr_at_95_recall", "aupro"} <= set(row)


def test_the_mean_table_averages_seeds_first_and_sets_then() -> None:
    results = pd.DataFrame({"set": ["a", "a", "b"], "seed": [0, 1, 0], "image_auroc": [0.6, 0.8, 1.0]})

    means = quality.mean_table(results)["image_auroc"]

    assert means.to_dict() == pytest.approx({"a": 0.7, "b": 1.0, "mean": 0.85})


def test_the_plain_protocol_finds_a_square(textures: Path) -> None:
    figures = evaluate.local_figures(pyramid, read_mvtec(textures))

    assert list(figures) == ["top 3", "top 20", "stride 4", "stride 8", "stride 16"]
    assert figures["top 3"] > 90


def test_distances_of_the_plain_protocol_are_in_units_of_normal() -> None:
    cells = torch.randn(20, 16, 16, 5, generator=torch.Generator().manual_seed(0))

    distances = evaluate.distance_maps(cells, 15)

    assert distances.shape == (20, 16, 16)
    assert float(distances[:15].quantile(evaluate.SCALE_QUANTILE)) == pytest.approx(1, abs=1e-3)


def test_distances_to_neighbours_equal_a_slow_twin() -> None:
    queries, normals = (torch.randn(n, 4, generator=torch.Generator().manual_seed(n)) for n in (7, 9))

    distances = evaluate.neighbour_distance(queries, normals)

    for query, distance in zip(queries, distances, strict=True):
        nearest = sorted(float((query - normal).norm()) for normal in normals)[: evaluate.NEIGHBOURS]
        assert float(distance) == pytest.approx(sum(nearest) / evaluate.NEIGHBOURS, rel=1e-4)


def test_one_class_against_the_rest_tells_colours_apart(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pictures = []
    for i in range(60):
        colour = np.full((32, 32, 3), 60.0)
        colour[..., i % 3] = 180
        pictures.append(Image.fromarray((colour + rng.normal(0, 20, (32, 32, 3))).clip(0, 255).astype(np.uint8)))
    packed = pack(tmp_path / "colours", pictures, ["red", "green", "blue"])

    figures = evaluate.object_figures(pyramid, read_packed(packed), evaluate.Limits())

    assert figures == pytest.approx({"4": 100, "8": 100, "16": 100})


def test_evaluate_prints_a_table_of_each_network(
    textures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["evaluate", "--data", str(textures.parent), "--backbone", "embedded"])

    evaluate.main()

    printed = capsys.readouterr().out
    assert "embedded, image AUROC in percent" in printed
    assert "top 3  top 20  stride 4  stride 8  stride 16" in printed
    assert "\ntexture" in printed
