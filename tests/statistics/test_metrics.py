"""Metrics of ranking and localisation against brute-force twins and scikit-learn; coverage of the intervals."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage
from sklearn.metrics import roc_auc_score

from anomaly_cli.statistics.bootstrap import Counts, bootstrap, proportion
from anomaly_cli.statistics.image_metrics import image_metrics, precision_at
from anomaly_cli.statistics.interval import Interval
from anomaly_cli.statistics.pixel_metrics import (
    FPR_LIMIT,
    NORMAL_PIXELS,
    REGION_PIXELS,
    Map,
    Mask,
    PixelCurves,
    PixelMetrics,
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


def pixel_metrics(maps: Sequence[Map], masks: Sequence[Mask]) -> PixelMetrics:
    """Measure every image once."""
    return PixelCurves(zip(maps, masks, strict=True)).measure(np.ones(len(maps), np.int64))


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


def slow_aupro(maps: list[Map], masks: list[Mask]) -> float:
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
        end = min(x1, FPR_LIMIT)
        if end > x0:
            y_end = y0 + (y1 - y0) * (end - x0) / (x1 - x0)
            area += (end - x0) * (y0 + y_end) / 2
    return area / FPR_LIMIT


@given(SEEDS, st.integers(1, 4), st.sampled_from([2, 5, 1000]))
@REPEATABLE
def test_aupro_equals_the_slow_twin(seed: int, count: int, levels: int) -> None:
    rng = np.random.default_rng(seed)
    maps, masks = map(list, zip(*[random_pair(rng, levels) for _ in range(count)], strict=True))

    assert pixel_metrics(maps, masks).aupro == pytest.approx(slow_aupro(maps, masks), abs=1e-9)


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

    measured = pixel_metrics([np.zeros((10, 10), np.float32)], [mask])

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


def test_false_positives_on_a_normal_image_lower_aupro() -> None:
    mask = np.zeros((8, 8), bool)
    mask[1:3, 1:3] = True
    found, empty = mask.astype(np.float32), np.zeros((8, 8), bool)

    clean = pixel_metrics([found, np.zeros((8, 8), np.float32)], [mask, empty])
    noisy = pixel_metrics([found, np.full((8, 8), 2, np.float32)], [mask, empty])

    assert clean.aupro == pytest.approx(1.0)
    assert noisy.aupro < 0.1


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


@given(SEEDS, st.integers(2, 4), st.sampled_from([2, 5, 1000]))
@REPEATABLE
def test_an_image_drawn_twice_counts_like_two_equal_images(seed: int, count: int, levels: int) -> None:
    rng = np.random.default_rng(seed)
    maps, masks = map(list, zip(*[random_pair(rng, levels) for _ in range(count)], strict=True))
    counts = rng.integers(0, 4, count)
    counts[0] += 1

    drawn = PixelCurves(zip(maps, masks, strict=True)).measure(counts)

    images = np.repeat(np.arange(count), counts)
    assert drawn == pytest.approx(pixel_metrics([maps[i] for i in images], [masks[i] for i in images]))


def test_subsampling_large_images_hardly_changes_the_metrics() -> None:
    rng = np.random.default_rng(0)
    maps, masks = [], []
    for side, width in ((600, 150), (40, 6)):
        mask = np.zeros((side, side), bool)
        mask[5 : 5 + width, 5 : 5 + width] = mask[-2:, -3:] = True
        smooth = ndimage.zoom(rng.gamma(2, 1, (side // 20, side // 20)), 20, order=1)  # as maps of coarse cells are
        maps.append((smooth + 0.7 * mask).astype(np.float32))
        masks.append(mask)
    assert masks[0].size > 2 * NORMAL_PIXELS
    assert 2 * REGION_PIXELS < 150**2
    labels, scores = (np.concatenate([each.ravel() for each in arrays]) for arrays in (masks, maps))
    regions = [[maps[0][5:155, 5:155]], [maps[0][-2:, -3:]], [maps[1][5:11, 5:11]], [maps[1][-2:, -3:]]]
    thresholds = np.quantile(scores[~labels], np.linspace(1, 0.7, 400))
    curve = [np.mean([(region[0] >= threshold).mean() for region in regions]) for threshold in thresholds]

    measured = pixel_metrics(maps, masks)

    assert measured.pixel_auroc == pytest.approx(roc_auc_score(labels, scores), abs=3e-3)
    assert measured.aupro == pytest.approx(np.mean(curve), abs=1e-2)


@given(SEEDS, st.integers(1, 12), st.integers(1, 5))
@REPEATABLE
def test_precision_at_k_is_the_mean_over_all_orders_of_ties(seed: int, count: int, levels: int) -> None:
    rng = np.random.default_rng(seed)
    labels, scores = rng.random(count) < 0.5, rng.integers(0, levels, count)
    k = int(rng.integers(1, count + 1))

    orders = [np.lexsort((rng.random(count), -scores)) for _ in range(1000)]
    slow = np.mean([labels[order[:k]].mean() for order in orders])

    assert precision_at(labels, scores, k) == pytest.approx(slow, abs=0.1)


def test_bootstrap_draws_each_class_in_its_own_number_and_again_the_same() -> None:
    labels = np.array([True] * 3 + [False] * 5)
    drawn: list[Counts] = []

    def measure(counts: Counts) -> list[float]:
        drawn.append(counts)
        return [float(counts[0]), 1.0]

    first, again = bootstrap(measure, labels, 50), bootstrap(measure, labels, 50)

    multiplicity, constant = first
    assert first == again
    assert constant == Interval(1, 1, 1)
    assert 0 <= multiplicity.low < multiplicity.value == 1 < multiplicity.high <= 3
    assert all((counts[:3].sum(), counts[3:].sum()) == (3, 5) for counts in drawn)
    assert len({counts.tobytes() for counts in drawn}) > 40


def test_intervals_have_about_their_nominal_coverage() -> None:
    rng = np.random.default_rng(0)
    truth = 0.7602  # of two normal distributions one apart: Φ(1/√2)
    labels = np.repeat([True, False], 60)
    held = 0
    for _ in range(60):
        scores = rng.normal(size=120) + labels

        def auroc(counts: Counts, scores: NDArray[np.float64] = scores) -> list[float]:
            wins = scores[:60, None] > scores[60:]
            return [float(counts[:60] @ wins @ counts[60:]) / 60**2]

        [interval] = bootstrap(auroc, labels, 200)
        held += interval.low <= truth <= interval.high

    assert 0.88 <= held / 60 < 1


@given(st.integers(0, 30), st.integers(1, 30))
@REPEATABLE
def test_ends_of_the_interval_of_a_share_leave_a_tail_of_a_fortieth(hits: int, count: int) -> None:
    hits = min(hits, count)

    interval = proportion(hits, count)
    low, high = interval.low, interval.high

    def chance(p: float, outcomes: range) -> float:
        return sum(math.comb(count, k) * p**k * (1 - p) ** (count - k) for k in outcomes)

    # The chance of so many hits or more at the low end, of so few or fewer at the high end.
    assert low == 0 if not hits else chance(low, range(hits, count + 1)) == pytest.approx(0.025, abs=1e-6)
    assert high == 1 if hits == count else chance(high, range(hits + 1)) == pytest.approx(0.025, abs=1e-6)
