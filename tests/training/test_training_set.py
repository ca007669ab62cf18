"""Reading the normal images: the size at which they enter the network, and the sample of their cells."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from anomaly_cli.config import DetectorConfig
from anomaly_cli.detector.backbones.build import build_backbone
from anomaly_cli.training.cell_samples import Cells
from anomaly_cli.training.run import TrainingContext
from anomaly_cli.training.training_set import SIZED_IMAGES, NormalSet, limit_image_size, sample_cells

WANTED = DetectorConfig(image_size=256)


def picture(path: Path, height: int, width: int) -> Path:
    Image.new("RGB", (width, height)).save(path)
    return path


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [
        (20, 20, 64),
        (32, 32, 64),
        (33, 33, 128),
        (128, 128, 128),
        (129, 129, 160),
        (80, 250, 160),  # as many pixels as 141 x 141
        (255, 257, 256),
        (600, 400, 256),
    ],
)
def test_images_are_enlarged_to_the_side_of_small_copies_but_at_most_to_twice_their_own(
    tmp_path: Path, height: int, width: int, size: int
) -> None:
    paths = [picture(tmp_path / f"{i}.png", height, width) for i in range(3)]

    assert limit_image_size(WANTED, paths, 2) == DetectorConfig(image_size=size)


@pytest.mark.parametrize(("side", "size"), [(32, 64), (64, 64), (80, 96), (300, 256)])
def test_scratch_enlarges_images_to_the_side_of_its_views_only(tmp_path: Path, side: int, size: int) -> None:
    paths = [picture(tmp_path / f"{i}.png", side, side) for i in range(3)]

    assert limit_image_size(replace(WANTED, backbone="scratch"), paths, 2).image_size == size


def test_a_few_small_images_do_not_lower_the_size_of_the_others(tmp_path: Path) -> None:
    sides = [300, 64, 300, 300, 64]
    paths = [picture(tmp_path / f"{i}.png", side, side) for i, side in enumerate(sides)]

    assert limit_image_size(WANTED, paths, 2) == WANTED


def test_files_that_cannot_be_read_have_no_size(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(b"")
    paths = [tmp_path / "0.png", picture(tmp_path / "1.png", 100, 100)]

    assert limit_image_size(WANTED, paths, 1) == DetectorConfig(image_size=128)
    assert limit_image_size(WANTED, paths[:1], 1) == WANTED


def test_of_many_images_some_of_every_part_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [picture(tmp_path / f"{i}.png", 160, 160) for i in range(7)]
    monkeypatch.setattr("anomaly_cli.training.training_set.SIZED_IMAGES", 3)
    for path in (paths[1], paths[2], paths[4], paths[5]):
        picture(path, 256, 256)

    assert SIZED_IMAGES == 100
    assert limit_image_size(WANTED, paths, 1) == DetectorConfig(image_size=160)  # the first, fourth and seventh


def small_set(folder: Path, count: int) -> list[Path]:
    folder.mkdir()
    draw = np.random.default_rng(0)
    paths = [folder / f"{i:02d}.png" for i in range(count)]
    for path in paths:
        Image.fromarray(draw.integers(0, 256, (64, 64, 3), np.uint8)).save(path)
    return paths


def sampled(paths: list[Path], workers: int = 2) -> tuple[dict[str, Cells], NormalSet]:
    run = TrainingContext(DetectorConfig(image_size=64), torch.device("cpu"), workers, lambda phase, done, total: None)
    return sample_cells(paths, build_backbone("embedded", None, 0), ("16", "image"), run)


def test_of_more_images_than_cells_as_many_give_one_each_and_the_choice_is_even_and_seeded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = small_set(tmp_path / "normal", 40)
    paths[0].write_bytes(b"")  # from the first on, numbers are those of readable images
    monkeypatch.setattr("anomaly_cli.training.training_set.CANDIDATE_CELLS", 20)

    cells, normals = sampled(paths)
    again, _ = sampled(paths, workers=1)

    assert len(normals.paths) == len(normals.groups) == 39
    assert cells["16"].sources.tolist() == cells["image"].sources.tolist()
    assert cells["16"].sources.tolist() == sorted(set(cells["16"].sources.tolist()))
    assert len(cells["16"].sources) == 20
    drawn = np.random.default_rng(0).random(40)[1:]
    assert set(cells["16"].sources.tolist()) == set(np.argsort(drawn)[:20].tolist())
    for name in cells:
        assert torch.equal(cells[name].values, again[name].values)
        assert torch.equal(cells[name].places, again[name].places)


def test_the_cells_of_a_chosen_image_are_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = small_set(tmp_path / "normal", 12)
    every, _ = sampled(paths)
    monkeypatch.setattr("anomaly_cli.training.training_set.CANDIDATE_CELLS", 9)

    few, _ = sampled(paths)

    assert len(every["image"].values) == 12
    assert torch.equal(few["image"].values, every["image"].values[few["image"].sources])
