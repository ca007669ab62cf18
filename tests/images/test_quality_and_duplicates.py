"""Quality columns: their numbers against slow twins, copies found and told from other images, and what `score` writes.

Scenes are low random grids enlarged, so that they have structure at every place that a re-encoded copy keeps.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from command_line import anomaly, rows_of
from numpy.typing import NDArray
from PIL import Image
from shared_run import SETTINGS, Trained

from anomaly_cli.images.decode import load_image
from anomaly_cli.images.duplicates import MAX_BRIGHTNESS_STEP, MAX_HASH_BITS, group_near_duplicates
from anomaly_cli.images.quality import HASH_BYTES, Quality, measure_quality
from anomaly_cli.training.cross_fitting import assign_folds

QUALITY = ("aspect", "brightness", "contrast", "sharpness", "content_hash", "duplicate_group")


def scene(seed: int, side: int = 128) -> Image.Image:
    grid = np.random.default_rng(seed).integers(30, 220, (16, 16, 3), dtype=np.uint8)
    return Image.fromarray(grid).resize((side, side), Image.Resampling.BICUBIC)


def quality_of(path: Path) -> Quality:
    quality = load_image(path, 64, with_quality=True).quality
    assert quality is not None
    return quality


def groups_of(qualities: list[Quality]) -> list[int]:
    hashes, perceptual = [each.content_hash for each in qualities], [each.perceptual_hash for each in qualities]
    groups: list[int] = group_near_duplicates(hashes, perceptual, [each.brightness for each in qualities]).tolist()
    return groups


def groups_by_all_pairs(hashes: list[str], perceptual: list[NDArray[np.uint8]], light: list[float]) -> list[int]:
    groups = list(range(len(hashes)))
    for a in range(len(hashes)):
        for b in range(a):
            differing = int(np.unpackbits(perceptual[a] ^ perceptual[b]).sum())
            alike = differing <= MAX_HASH_BITS and abs(light[a] - light[b]) <= MAX_BRIGHTNESS_STEP
            if hashes[a] == hashes[b] or alike:
                groups = [groups[a] if group == groups[b] else group for group in groups]
    shared = list(dict.fromkeys(group for group in groups if groups.count(group) > 1))
    return [shared.index(group) + 1 if group in shared else 0 for group in groups]


def test_light_and_sharpness_equal_those_counted_pixel_by_pixel() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    luma = np.asarray(Image.fromarray(pixels).convert("L")).astype(int)

    quality = measure_quality(pixels, 70, 90, "")

    laplacians = [
        luma[y - 1, x] + luma[y + 1, x] + luma[y, x - 1] + luma[y, x + 1] - 4 * luma[y, x]
        for y in range(1, 6)
        for x in range(1, 8)
    ]
    values = [int(value) for value in luma.flat]
    mean = sum(values) / 63
    assert quality.aspect == 90 / 70
    assert quality.brightness == pytest.approx(mean / 255)
    assert quality.contrast == pytest.approx((sum((value - mean) ** 2 for value in values) / 63) ** 0.5 / 255)
    assert quality.sharpness == pytest.approx(np.var(laplacians))


@pytest.mark.parametrize("seed", range(5))
def test_hashes_of_copies_are_near_and_those_of_other_images_are_not(tmp_path: Path, seed: int) -> None:
    image = scene(seed)
    image.save(tmp_path / "original.png")
    image.save(tmp_path / "encoded.jpg", quality=70)
    image.resize((96, 96), Image.Resampling.LANCZOS).save(tmp_path / "smaller.png")
    image.point(lambda level: min(255, round(level * 1.05))).save(tmp_path / "brighter.png")
    scene(seed + 100).save(tmp_path / "other.png")
    names = ("other.png", "original.png", "encoded.jpg", "smaller.png", "brighter.png")

    assert groups_of([quality_of(tmp_path / name) for name in names]) == [0, 1, 1, 1, 1]


@pytest.mark.parametrize("seed", range(5))
def test_groups_equal_those_of_comparing_all_pairs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scenes = rng.integers(0, 256, (12, HASH_BYTES), dtype=np.uint8)
    perceptual, hashes, light = [], [], []
    for _ in range(40):
        number = int(rng.integers(12))
        flipped = np.zeros(8 * HASH_BYTES, np.uint8)
        flipped[rng.choice(8 * HASH_BYTES, int(rng.integers(0, 16)), replace=False)] = 1
        perceptual.append(scenes[number] ^ np.packbits(flipped))
        hashes.append(f"{rng.integers(60):064x}")
        light.append(0.2 + 0.3 * float(rng.integers(2)))
    first = {content: number for number, content in reversed(list(enumerate(hashes)))}
    perceptual = [perceptual[first[content]] for content in hashes]  # the same bytes have the same hash
    light = [light[first[content]] for content in hashes]

    found = group_near_duplicates(hashes, [each.tobytes().hex() for each in perceptual], light).tolist()

    assert max(found) > 1
    assert found == groups_by_all_pairs(hashes, perceptual, light)


def test_blank_images_are_copies_where_their_light_is_the_same_and_never_of_a_scene(tmp_path: Path) -> None:
    for name, level in (("a", 0), ("b", 3), ("c", 255)):
        Image.new("L", (50, 40), level).save(tmp_path / f"{name}.png")
    Image.new("L", (1, 1), 0).save(tmp_path / "d.png")
    scene(0).point(lambda level: level // 20).save(tmp_path / "e.png")

    qualities = [quality_of(tmp_path / f"{name}.png") for name in "abcde"]

    assert groups_of(qualities) == [1, 1, 0, 1, 0]
    assert [(each.contrast, each.sharpness) for each in qualities[:4]] == [(0.0, 0.0)] * 4


def test_no_file_and_one_file_are_in_no_group() -> None:
    assert group_near_duplicates([], [], []).tolist() == []
    assert group_near_duplicates(["00" * 32], ["00" * HASH_BYTES], [0.5]).tolist() == [0]


def test_the_content_hash_is_the_sha256_of_the_file(tmp_path: Path) -> None:
    scene(0).save(tmp_path / "a.jpg")

    expected = hashlib.sha256((tmp_path / "a.jpg").read_bytes()).hexdigest()

    assert quality_of(tmp_path / "a.jpg").content_hash == expected


@pytest.fixture
def batch(tmp_path: Path) -> list[Path]:
    for number in range(4):
        scene(number).save(tmp_path / f"{number}.png")
    (tmp_path / "4.png").write_bytes((tmp_path / "3.png").read_bytes())
    scene(1).save(tmp_path / "5.jpg", quality=80)
    (tmp_path / "6.png").touch()
    return sorted(tmp_path.iterdir())


def test_score_numbers_the_groups_by_path_and_leaves_unreadable_rows_empty(trained: Trained, batch: list[Path]) -> None:
    result = anomaly("score", *batch, "--model", trained.folder / trained.model, "--out", "-")

    rows = {Path(row["path"]).name: row for row in rows_of(result.stdout_bytes)}
    groups = {name: row["duplicate_group"] for name, row in rows.items()}
    assert groups == {"0.png": "", "1.png": "1", "2.png": "", "3.png": "2", "4.png": "2", "5.jpg": "1", "6.png": ""}
    assert rows["3.png"]["content_hash"] == rows["4.png"]["content_hash"]
    assert [rows["6.png"][name] for name in QUALITY] == [""] * 6


def test_without_quality_only_its_columns_are_missing(trained: Trained, batch: list[Path]) -> None:
    command: tuple[str | Path, ...] = ("score", *batch, "--model", trained.folder / trained.model, "--out", "-")

    rows = rows_of(anomaly(*command).stdout_bytes)
    without = rows_of(anomaly(*command, "--no-quality").stdout_bytes)

    assert [name for name in rows[0] if name not in QUALITY] == list(without[0])
    assert {*rows[0]} == {*without[0], *QUALITY}
    assert [{name: row[name] for name in without[0]} for row in rows] == without


def test_the_table_is_the_same_in_any_order_of_files(trained: Trained, batch: list[Path]) -> None:
    command: tuple[str | Path, ...] = ("score", "--model", trained.folder / trained.model, "--out", "-")

    assert anomaly(*command, *batch).stdout_bytes == anomaly(*command, *reversed(batch)).stdout_bytes


def test_training_on_near_copies_warns(tmp_path: Path) -> None:
    for number in range(9):
        scene(number).save(tmp_path / f"{number}.png")
    scene(0).save(tmp_path / "copy.jpg", quality=80)

    result = anomaly("train", tmp_path, "--model", tmp_path / "m.safetensors", *SETTINGS)

    told = "2 of the 10 normal images are copies or near-copies of others"
    assert result.exit_code == 0
    assert f"warning: {told}; they were held out together, which keeps the p-values valid\n" in result.stderr


def test_copies_get_the_same_fold_and_folds_stay_even() -> None:
    groups = np.array([1, 0, 2, 1, 0, 2, 0, 1] * 5)

    folds = assign_folds(40, 0, groups).numpy()

    assert [len(set(folds[groups == number])) for number in (1, 2)] == [1, 1]
    assert folds.min() == 0


def squared_gaps(normals: NDArray[np.float64], groups: NDArray[np.int64]) -> NDArray[np.float64]:
    """Distance of each of (N, D) points to the nearest of those that its fold leaves in."""
    folds = assign_folds(len(normals), 0, groups).numpy()
    gaps = ((normals[:, None] - normals) ** 2).sum(axis=2)
    gaps[folds[:, None] == folds] = np.inf
    nearest: NDArray[np.float64] = gaps.min(axis=1)
    return nearest


def test_p_values_of_fresh_normals_are_too_small_with_copies_unless_these_are_held_out_together() -> None:
    rng = np.random.default_rng(0)
    alone: list[float] = []
    kept_together: list[float] = []
    for _ in range(40):
        points = np.repeat(rng.normal(size=(60, 4)), 2, axis=0) + rng.normal(0, 0.01, (120, 4))
        fresh = rng.normal(size=(50, 4))
        gaps = ((fresh[:, None] - points) ** 2).sum(axis=2).min(axis=1)
        pairs = np.repeat(np.arange(1, 61), 2)
        for groups, rejected in ((np.zeros(120, np.int64), alone), (pairs, kept_together)):
            held_out = squared_gaps(points, groups)
            p_values = (1 + (held_out >= gaps[:, None]).sum(axis=1)) / 121
            rejected.append(float(np.mean(p_values <= 0.1)))

    assert np.mean(alone) > 0.2
    assert np.mean(kept_together) < 0.12
