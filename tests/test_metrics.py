"""The benchmark's own measures against slow twins and scikit-learn, and its readers against folders made here."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from sklearn.metrics import roc_auc_score

from anomaly_cli.metrics import Map, Mask, image_metrics, pixel_metrics
from benchmarks.datasets import (
    AnomalySet,
    TestImage,
    read_classes,
    read_mvtec,
    read_packed,
    subsample,
    take_known_anomalies,
)

REPEATABLE = settings(deadline=None, derandomize=True, max_examples=40)
SEEDS = st.integers(0, 2**20)


def random_pair(rng: np.random.Generator, levels: int) -> tuple[Map, Mask]:
    """A map of few distinct values, so that ties are common, and a mask of several regions."""
    height, width = rng.integers(4, 9, 2)
    mask = rng.random((height, width)) < 0.25
    mask[0, 0], mask[-1, -1] = True, False
    anomaly_map = rng.integers(0, levels, (height, width)) + mask * rng.integers(0, 3)
    return anomaly_map.astype(np.float32), mask


def regions_of(mask: Mask) -> list[list[tuple[int, int]]]:
    """Flood fill, neighbours by side or corner."""
    left = {(int(y), int(x)) for y, x in np.argwhere(mask)}
    regions = []
    while left:
        queue = [left.pop()]
        region = []
        while queue:
            y, x = queue.pop()
            region.append((y, x))
            near = {(y + dy, x + dx) for dy, dx in itertools.product((-1, 0, 1), repeat=2)} & left
            left -= near
            queue += near
        regions.append(region)
    return regions


def slow_aupro(maps: list[Map], masks: list[Mask], fpr_limit: float) -> float:
    """Every threshold, every region, then the trapezoid rule up to the limit."""
    regions = [
        [float(m[cell]) for cell in region] for m, mask in zip(maps, masks, strict=True) for region in regions_of(mask)
    ]
    normal = [float(value) for m, mask in zip(maps, masks, strict=True) for value in m[~mask]]
    curve = [(0.0, 0.0)]
    for threshold in sorted({float(value) for m in maps for value in m.flat}, reverse=True):
        fpr = sum(value >= threshold for value in normal) / len(normal)
        overlap = sum(sum(value >= threshold for value in region) / len(region) for region in regions) / len(regions)
        curve.append((fpr, overlap))
    area = 0.0
    for (x0, y0), (x1, y1) in itertools.pairwise(curve):
        end = min(x1, fpr_limit)
        if end > x0:
            y_end = y0 + (y1 - y0) * (end - x0) / (x1 - x0)
            area += (end - x0) * (y0 + y_end) / 2
    return area / fpr_limit


@given(SEEDS, st.integers(1, 4), st.sampled_from([2, 5, 1000]), st.sampled_from([0.05, 0.3, 1.0]))
@REPEATABLE
def test_aupro_equals_the_slow_twin(seed: int, count: int, levels: int, fpr_limit: float) -> None:
    rng = np.random.default_rng(seed)
    maps, masks = map(list, zip(*[random_pair(rng, levels) for _ in range(count)], strict=True))

    measured = pixel_metrics(maps, masks, fpr_limit)

    assert measured.aupro == pytest.approx(slow_aupro(maps, masks, fpr_limit), abs=1e-9)


@given(SEEDS, st.integers(1, 4), st.sampled_from([2, 5, 1000]))
@REPEATABLE
def test_pixel_auroc_equals_scikit_learn(seed: int, count: int, levels: int) -> None:
    rng = np.random.default_rng(seed)
    maps, masks = map(list, zip(*[random_pair(rng, levels) for _ in range(count)], strict=True))
    labels, scores = (np.concatenate([each.ravel() for each in arrays]) for arrays in (masks, maps))

    assert pixel_metrics(maps, masks).pixel_auroc == pytest.approx(roc_auc_score(labels, scores))


def test_a_perfect_map_has_aupro_one_and_its_opposite_zero() -> None:
    mask = np.zeros((10, 10), bool)
    mask[2:4, 2:4] = mask[7:9, 5:9] = True
    perfect = mask.astype(np.float32)

    assert list(pixel_metrics([perfect], [mask])) == pytest.approx([1, 1])
    assert list(pixel_metrics([-perfect], [mask])) == [0, 0]


def test_a_constant_map_has_the_area_below_the_diagonal() -> None:
    mask = np.zeros((10, 10), bool)
    mask[2:4, 2:4] = True

    measured = pixel_metrics([np.zeros((10, 10), np.float32)], [mask], 0.3)

    assert measured.pixel_auroc == pytest.approx(0.5)
    assert measured.aupro == pytest.approx(0.15)


def test_small_and_large_regions_count_alike_in_aupro_but_not_in_pixel_auroc() -> None:
    mask = np.zeros((20, 20), bool)
    mask[:10, :9], mask[15, 15] = True, True
    found_large, found_small = (np.zeros((20, 20), np.float32) for _ in range(2))
    found_large[:10, :9], found_small[15, 15] = 1, 1

    large, small = (pixel_metrics([each], [mask]) for each in (found_large, found_small))

    assert large.aupro == pytest.approx(small.aupro)
    assert large.pixel_auroc > small.pixel_auroc + 0.4


def test_a_normal_image_with_a_hot_map_costs_aupro() -> None:
    mask = np.zeros((8, 8), bool)
    mask[1:3, 1:3] = True
    found, empty = mask.astype(np.float32), np.zeros((8, 8), bool)

    calm = pixel_metrics([found, np.zeros((8, 8), np.float32)], [mask, empty])
    hot = pixel_metrics([found, np.full((8, 8), 2, np.float32)], [mask, empty])

    assert calm.aupro == pytest.approx(1.0)
    assert hot.aupro < 0.1


def slow_f1_max(labels: NDArray[np.bool_], scores: NDArray[np.float64]) -> float:
    best = 0.0
    for threshold in scores:
        flagged = scores >= threshold
        hits = (flagged & labels).sum()
        best = max(best, 2 * hits / (flagged.sum() + labels.sum()))
    return best


def slow_fpr_at_95_recall(labels: NDArray[np.bool_], scores: NDArray[np.float64]) -> float:
    rates = [
        (scores[~labels] >= threshold).mean() for threshold in scores if (scores[labels] >= threshold).mean() >= 0.95
    ]
    return float(min(rates))


@given(SEEDS, st.integers(2, 60), st.sampled_from([3, 1000]))
@REPEATABLE
def test_image_metrics_equal_slow_twins(seed: int, count: int, levels: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.random(count) < 0.4
    labels[0], labels[1] = True, False
    scores = rng.integers(0, levels, count) / levels + 0.3 * labels
    pairs = [(a > b) + (a == b) / 2 for a in scores[labels] for b in scores[~labels]]

    measured = image_metrics(labels, scores)

    assert measured.image_auroc == pytest.approx(np.mean(pairs))
    assert measured.f1_max == pytest.approx(slow_f1_max(labels, scores))
    assert measured.fpr_at_95_recall == pytest.approx(slow_fpr_at_95_recall(labels, scores))


def test_a_perfect_ranking_has_perfect_measures() -> None:
    assert image_metrics([0, 0, 1, 1], [0.1, 0.2, 0.9, 0.8]) == (1.0, 1.0, 1.0, 0.0)


def write_image(path: Path, side: int = 8) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (side, side)).save(path)
    return path


def mvtec_folder(folder: Path) -> Path:
    for i in range(6):
        write_image(folder / "train" / "good" / f"{i}.png")
        write_image(folder / "test" / "good" / f"{i}.png")
        write_image(folder / "test" / "scratch" / f"{i}.jpg")
        write_image(folder / "test" / "dent" / f"{i}.jpg")
        write_image(folder / "ground_truth" / "scratch" / f"{i}_mask.png")
    (folder / "test" / "dent" / "notes.txt").write_text("no image")
    return folder


def test_mvtec_layout_is_read_with_types_and_masks(tmp_path: Path) -> None:
    folder = mvtec_folder(tmp_path / "metal")

    data = read_mvtec(folder)

    assert data.name == "metal"
    assert data.normal == [folder / "train" / "good" / f"{i}.png" for i in range(6)]
    assert [image.kind for image in data.test] == ["dent"] * 6 + ["good"] * 6 + ["scratch"] * 6
    assert [image.anomalous for image in data.test] == [True] * 6 + [False] * 6 + [True] * 6
    assert data.has_masks
    assert {image.mask for image in data.test[:12]} == {None}
    assert data.test[13].mask == folder / "ground_truth" / "scratch" / "1_mask.png"


def test_class_folders_are_read_as_one_class_against_the_rest(tmp_path: Path) -> None:
    for part, name in itertools.product(("train", "test"), ("cat", "dog", "owl")):
        write_image(tmp_path / "pets" / part / name / "1.png")

    data = read_classes(tmp_path / "pets", "dog")

    assert data.name == "pets/dog"
    assert [path.parent.name for path in data.normal] == ["dog"]
    assert [(image.path.parent.name, image.anomalous) for image in data.test] == [
        ("cat", True),
        ("dog", False),
        ("owl", True),
    ]


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "train" / "good").mkdir(parents=True)

    with pytest.raises(FileNotFoundError, match=f"no image in {tmp_path / 'train' / 'good'}"):
        read_mvtec(tmp_path)


def made_up_set() -> AnomalySet:
    test = [TestImage(Path(f"{i:03}"), "good" if i % 3 else "dent") for i in range(90)]
    return AnomalySet("made up", [Path(f"n{i:03}") for i in range(50)], test)


def test_a_seed_draws_the_same_images_and_another_seed_others() -> None:
    first, again, other = (subsample(made_up_set(), 10, 7, seed) for seed in (1, 1, 2))

    assert first == again
    assert first.normal != other.normal
    assert len(first.normal) == len(set(first.normal)) == 10
    assert sum(image.anomalous for image in first.test) == sum(not image.anomalous for image in first.test) == 7
    assert first.normal == sorted(first.normal)


def test_limits_above_the_size_keep_everything() -> None:
    data = subsample(made_up_set(), 1000, 1000, 0)

    assert data.normal == made_up_set().normal
    assert {image.path for image in data.test} == {image.path for image in made_up_set().test}


def test_known_anomalies_leave_the_test_images() -> None:
    known, rest = take_known_anomalies(made_up_set(), 5, seed=0)

    assert len(known) == 5
    assert {image.path for image in rest.test} | set(known) == {image.path for image in made_up_set().test}
    assert not {image.path for image in rest.test} & set(known)
    assert all(image.anomalous for image in made_up_set().test if image.path in known)


def packed_pictures(folder: Path) -> Path:
    contents = []
    for shade in range(12):
        path = folder / "one.jpg"
        Image.new("RGB", (32, 32), (20 * shade,) * 3).save(path, quality=95)
        contents.append(path.read_bytes())
    (folder / "tiny.bin").write_bytes(b"".join(contents))
    np.savez(
        folder / "tiny.npz",
        offsets=np.cumsum([0, *map(len, contents)]),
        labels=np.arange(12) % 3,
        test=np.arange(12) >= 6,
        classes=np.array(["ant", "bee", "cow"]),
    )
    return folder / "tiny"


def test_packed_pictures_are_decoded_and_enlarged(tmp_path: Path) -> None:
    packed = read_packed(packed_pictures(tmp_path))

    chosen = packed.choose(test=True, per_class=1)
    pixels = packed.decode(chosen, 64)

    assert chosen.tolist() == [6, 7, 8]
    assert packed.labels[chosen].tolist() == [0, 1, 2]
    assert pixels.shape == (3, 64, 64, 3)
    assert pixels.mean((1, 2, 3)) == pytest.approx([120, 140, 160], abs=2)


def test_packed_pictures_become_class_folders(tmp_path: Path) -> None:
    read_packed(packed_pictures(tmp_path)).write_folders(tmp_path / "tree", 2, 1)

    data = read_classes(tmp_path / "tree", "bee")

    assert [path.name for path in data.normal] == ["00001.jpg", "00004.jpg"]
    assert [image.kind for image in data.test] == ["ant", "good", "cow"]
