"""Changes of appearance, and the benchmark of style that is made of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from benchmarks.accuracy import style
from benchmarks.accuracy.appearance import CHANGES, halftone
from benchmarks.accuracy.datasets import AnomalySet, TestImage, read_set
from benchmarks.accuracy.methods import Settings

ROOT = Path(__file__).parents[2]


def picture(height: int = 48, width: int = 64) -> NDArray[np.uint8]:
    y, x = np.mgrid[:height, :width]
    waves = np.stack([np.sin(x / 5), np.cos(y / 7), np.sin((x + y) / 9)], axis=2)
    grain = np.random.default_rng(0).normal(0, 12, waves.shape)
    pixels: NDArray[np.uint8] = (128 + 60 * waves + grain).clip(0, 255).astype(np.uint8)
    return pixels


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_keeps_size_and_content_and_changes_the_picture(name: str) -> None:
    original = picture()

    changed = CHANGES[name](original, np.random.default_rng(3))

    assert changed.shape == original.shape
    assert changed.dtype == np.uint8
    assert np.abs(changed.astype(int) - original).mean() > 1
    assert np.corrcoef(changed.ravel(), original.ravel())[0, 1] > 0.6


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_drawn_by_the_seed(name: str) -> None:
    first, again, other = (CHANGES[name](picture(), np.random.default_rng(seed)) for seed in (1, 1, 2))

    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("level", [0.1, 0.5, 0.8])
def test_a_halftone_print_is_black_and_white_and_keeps_the_mean(level: float) -> None:
    printed = halftone(np.full((90, 90, 3), level), 6.0)

    assert set(np.unique(printed)) == {0.0, 1.0}
    assert printed.mean(axis=(0, 1)) == pytest.approx([level] * 3, abs=0.05)


def test_images_to_learn_from_and_held_out_ones_are_disjoint_and_drawn_from_all_normal_images() -> None:
    test = [TestImage(Path(f"t{i}"), "good" if i % 2 else "dent") for i in range(20)]
    data = AnomalySet("made up", [Path(f"n{i}") for i in range(30)], test)

    normal, held_out = style.deal(data, 25, 10, seed=0)
    few, many = style.deal(data, 1000, 1000, seed=0)

    assert (len(normal), len(held_out)) == (25, 10)
    assert not set(normal) & set(held_out)
    assert (len(few), len(many)) == (30, 10)
    assert not any(image.path in held_out + normal for image in test if image.anomalous)


def test_washers_of_another_appearance_rank_above_unchanged_ones() -> None:
    normal, held_out = style.deal(read_set(ROOT / "sample_data"), 24, 6, seed=0)

    rows = style.measure(style.Job("sample_data", normal, held_out, "ours", Settings(image_size=128)))

    assert [row["appearance"] for row in rows] == list(CHANGES)
    assert {row["tested"] for row in rows} == {12}
    mean = np.mean([float(row["image_auroc"]) for row in rows])
    assert mean >= 0.9  # 0.98 when this was written


def test_a_changed_picture_is_the_same_for_the_same_file_and_seed(tmp_path: Path) -> None:
    Image.fromarray(picture()).save(tmp_path / "a.png")

    first = style.change(tmp_path / "a.png", "other camera", tmp_path / "1", 0)
    again = style.change(tmp_path / "a.png", "other camera", tmp_path / "2", 0)
    other = style.change(tmp_path / "a.png", "other camera", tmp_path / "3", 1)

    assert first.read_bytes() == again.read_bytes() != other.read_bytes()
