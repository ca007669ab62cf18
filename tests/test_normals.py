"""The size at which normal images enter the network: as wanted, never larger than they are."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from anomaly_cli.config import DetectorConfig
from anomaly_cli.normals import SIZED_IMAGES, never_enlarging

WANTED = DetectorConfig(image_size=256)


def picture(path: Path, height: int, width: int) -> Path:
    Image.new("RGB", (width, height)).save(path)
    return path


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [
        (32, 32, 64),  # the smallest there is
        (64, 64, 64),
        (65, 65, 96),
        (60, 240, 128),  # as many pixels as 120 x 120
        (255, 257, 256),
        (600, 400, 256),
    ],
)
def test_small_images_are_not_enlarged(tmp_path: Path, height: int, width: int, size: int) -> None:
    paths = [picture(tmp_path / f"{i}.png", height, width) for i in range(3)]

    assert never_enlarging(WANTED, paths, 2) == DetectorConfig(image_size=size)


def test_a_few_small_images_do_not_lower_the_size_of_the_others(tmp_path: Path) -> None:
    sides = [300, 64, 300, 300, 64]
    paths = [picture(tmp_path / f"{i}.png", side, side) for i, side in enumerate(sides)]

    assert never_enlarging(WANTED, paths, 2) == WANTED


def test_files_that_cannot_be_read_have_no_size(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(b"")
    paths = [tmp_path / "0.png", picture(tmp_path / "1.png", 100, 100)]

    assert never_enlarging(WANTED, paths, 1) == DetectorConfig(image_size=128)
    assert never_enlarging(WANTED, paths[:1], 1) == WANTED


def test_of_many_images_some_of_every_part_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [picture(tmp_path / f"{i}.png", 64, 64) for i in range(7)]
    monkeypatch.setattr("anomaly_cli.normals.SIZED_IMAGES", 3)
    for path in (paths[1], paths[2], paths[4], paths[5]):
        picture(path, 128, 128)

    assert SIZED_IMAGES == 100
    assert never_enlarging(WANTED, paths, 1) == DetectorConfig(image_size=64)  # the first, fourth and seventh
