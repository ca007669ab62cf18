"""Share of anomalies in a batch, against a brute-force twin and simulated batches; the test for drift."""

from __future__ import annotations

import itertools
import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from anomaly_cli.config import MIN_BATCH
from anomaly_cli.detector.calibration import ScoreScale
from anomaly_cli.statistics import prevalence
from anomaly_cli.statistics.drift import drift
from anomaly_cli.statistics.prevalence import anomaly_share, invert_unit

Floats = NDArray[np.float64]
REPEATABLE = settings(deadline=None, derandomize=True, max_examples=30)
SEEDS = st.integers(0, 2**20)
TINY = float(np.finfo(np.float64).tiny)


def scores_of(standard: Floats) -> Floats:
    """Scores of images whose deviations lie so many spreads above the median of normal."""
    return ScoreScale(0.0, 2.6).apply(standard)


def planted(seed: int, count: int, anomalous: int, distance: float = 6.0) -> Floats:
    rng = np.random.default_rng(seed)
    return scores_of(np.concatenate([rng.normal(size=count - anomalous), rng.normal(distance, 1.0, anomalous)]))


def slow_share(normal: Floats, found: Floats) -> tuple[float, float, float]:
    """Sum the posterior in loops, bin by bin, from counts of the values themselves."""
    known = sorted(invert_unit(normal))
    n, N = len(known), len(found)
    low, median, high = np.quantile(known, (0.16, 0.5, 0.84))
    spread = (high - low) / 2
    near_ranks = sorted({max(1, round(tail * (n + 1))) for tail in prevalence.TAILS}, reverse=True)
    near = [known[n - rank] for rank in near_ranks]
    far = [median + edge * spread for edge in prevalence.FAR_EDGES if median + edge * spread > near[-1]]
    values = list(invert_unit(found))
    above = [N, *(sum(value > edge for value in values) for edge in near + far), 0]
    counts = [more - fewer for more, fewer in itertools.pairwise(above)]
    bell = NormalDist()
    posterior = []
    shares = [(i / (prevalence.SHARE_STEPS - 1)) ** prevalence.FEW_FIRST for i in range(prevalence.SHARE_STEPS)]
    kinds = []
    for step in prevalence.SHIFT_STEPS:
        tails = [1.0, *(bell.cdf(bell.inv_cdf(r / (n + 1)) + prevalence.SHIFT_SPREAD * step) for r in near_ranks)]
        last = tails[-1]
        tails += [last * min(1, (sum(k > e for k in known) + 0.5) / near_ranks[-1]) for e in far]
        tails.append(0.0)
        for centre, width in itertools.product(prevalence.CENTRES, prevalence.WIDTHS):
            kind = NormalDist(centre, width)
            over = [1.0, *(1 - kind.cdf((edge - median) / spread) for edge in near + far), 0.0]
            pairs = zip(itertools.pairwise(tails), itertools.pairwise(over), strict=True)
            kinds.append((step, [(a - b, c - d) for (a, b), (c, d) in pairs]))
    for share in shares:
        total = 0.0
        for step, masses in kinds:
            logs = [
                k * math.log(max((1 - share) * a + share * b, TINY))
                for k, (a, b) in zip(counts, masses, strict=True)
                if k
            ]
            total += math.exp(n / (n + N) * sum(logs) - step**2 / 2 + 60)
        posterior.append(total)
    weights = [value / sum(posterior) for value in posterior]
    sums = list(itertools.accumulate(weights))
    ends = [next(s for s, c in zip(shares, sums, strict=True) if c >= tail) for tail in (0.025, 0.975)]
    mean = sum(s * w for s, w in zip(shares, weights, strict=True))
    return mean, ends[0] if ends[0] * N >= 0.5 else 0.0, ends[1]


@pytest.mark.parametrize(("n", "count", "anomalous"), [(20, 20, 0), (25, 30, 6)])
def test_the_share_of_anomalies_equals_a_slow_sum(n: int, count: int, anomalous: int) -> None:
    normal, found = planted(0, n, 0), planted(1, count, anomalous, 3.0)

    estimated = anomaly_share(normal, found)

    assert estimated is not None
    assert (estimated.value, estimated.low, estimated.high) == pytest.approx(slow_share(normal, found), rel=1e-3)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.05, 0.1, 0.2, 0.5, 1.0])
def test_clear_anomalies_are_counted_to_three_points_on_average_and_lie_in_the_interval(share: float) -> None:
    estimated = [anomaly_share(planted(i, 200, 0), planted(100 + i, 300, round(300 * share))) for i in range(40)]

    shares = [each.value for each in estimated if each is not None]
    covered = [each.low <= share <= each.high for each in estimated if each is not None]
    assert np.mean(shares) == pytest.approx(share, abs=0.03)
    assert sum(covered) >= 36


def test_anomalies_that_overlap_with_normal_images_are_counted_too() -> None:
    estimated = [anomaly_share(planted(i, 250, 0), planted(100 + i, 250, 50, 2.5)) for i in range(20)]

    flagged = [np.mean(planted(100 + i, 250, 50, 2.5) > planted(i, 250, 0).max()) for i in range(20)]
    assert np.mean(flagged) < 0.1
    assert 0.15 < np.mean([each.value for each in estimated if each is not None]) < 0.3
    assert sum(each.low <= 0.2 <= each.high for each in estimated if each is not None) >= 17


@given(SEEDS, st.integers(0, 60))
@REPEATABLE
def test_the_share_is_in_its_interval_and_its_interval_in_range_also_with_ties(seed: int, anomalous: int) -> None:
    normal, found = np.round(planted(seed, 40, 0), 1), np.round(planted(seed + 1, 60, anomalous), 1)

    estimated = anomaly_share(normal, found)

    assert estimated is not None
    assert 0 <= estimated.low <= estimated.value <= estimated.high <= 1


@given(SEEDS)
@REPEATABLE
def test_share_and_drift_do_not_depend_on_the_order_of_images(seed: int) -> None:
    rng = np.random.default_rng(seed)
    normal, found = planted(seed, 50, 0), planted(seed + 1, 50, 10)
    others = rng.permutation(normal), rng.permutation(found)

    assert anomaly_share(normal, found) == anomaly_share(*others)
    assert drift(normal[:, None], found[:, None]) == drift(others[0][:, None], others[1][:, None])


@pytest.mark.parametrize(("n", "N"), [(MIN_BATCH - 1, 50), (50, MIN_BATCH - 1), (50, 0)])
def test_few_images_give_neither_share_nor_drift(n: int, N: int) -> None:
    normal, found = planted(0, n, 0), planted(1, N, 0)

    assert anomaly_share(normal, found) is None
    assert drift(normal[:, None], found.reshape(N, 1)) is None


def test_identical_normal_images_give_a_share_and_a_verdict_on_drift() -> None:
    same, other = np.full(30, 0.5), np.full(30, 3.0)

    alike, apart = anomaly_share(same, same), anomaly_share(same, other)
    still, moved = drift(same[:, None], same[:, None]), drift(same[:, None], other[:, None])

    assert alike is not None
    assert apart is not None
    assert still is not None
    assert moved is not None
    assert alike.value < 0.2 < 0.9 < apart.value
    assert (still.found, moved.found) == (False, True)


def test_invert_unit_inverts_the_score_scale() -> None:
    deviations = np.linspace(-9, 30, 100)

    np.testing.assert_allclose(invert_unit(ScoreScale(0.0, 2.6).apply(deviations)), deviations / 2.6, atol=1e-12)
    assert np.isfinite(invert_unit([0.0])).all()


def scales_of(rng: np.random.Generator, count: int, shift: float = 0.0, scales: int = 3) -> Floats:
    """Scores of scales that rise and fall together; `shift` moves the last one, in spreads."""
    standard = (rng.normal(size=(count, 1)) + rng.normal(size=(count, scales))) / math.sqrt(2)
    standard[:, -1] += shift
    return scores_of(standard)


def rejection_rate(anomalous: int, distance: float = 6.0, shift: float = 0.0, n: int = 150, N: int = 200) -> float:
    """How often drift is found in a batch with so many anomalies in it."""
    found = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        normal, batch = scales_of(rng, n), scales_of(rng, N, shift)
        batch[:anomalous] = scores_of(rng.normal(distance, 1.0, (anomalous, 3)))
        found.append(drift(normal, batch))
    return float(np.mean([each.found for each in found if each is not None]))


@pytest.mark.parametrize(("anomalous", "distance"), [(0, 6.0), (10, 6.0), (40, 6.0), (40, 3.0), (60, 9.0)])
def test_anomalies_in_a_batch_from_the_same_source_are_no_drift(anomalous: int, distance: float) -> None:
    assert rejection_rate(anomalous, distance) <= 0.01


@pytest.mark.parametrize("n", [20, 40, 1000])
def test_drift_is_not_found_more_often_where_images_are_few(n: int) -> None:
    assert rejection_rate(0, n=n, N=n) <= 0.01


@pytest.mark.parametrize("shift", [-1.6, 1.6, 4.0, 20.0])
def test_a_shift_of_one_scale_is_drift_with_and_without_anomalies(shift: float) -> None:
    assert rejection_rate(0, shift=shift) > 0.95
    assert rejection_rate(20, shift=shift) > 0.95


def test_the_scale_that_moved_is_named_and_whether_it_came_nearer() -> None:
    rng = np.random.default_rng(0)

    for shift in (-2.0, 2.0, 20.0):
        found = drift(scales_of(rng, 100), scales_of(rng, 100, shift))

        assert found is not None
        assert (found.scale, found.found, found.nearer) == (2, True, shift < 0)


def test_a_small_shift_as_between_two_memories_is_tolerated() -> None:
    assert rejection_rate(0, shift=0.15, n=1000, N=1000) <= 0.01
