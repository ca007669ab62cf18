"""Calibration: p-values against counting, q-values against the step-up rule, units and the limit of normal."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from anomaly_cli.detector.calibration import Calibration, ScoreScale, fuse_scores
from anomaly_cli.statistics.conformal import conformal_p_values
from anomaly_cli.statistics.fdr import STOREY_LAMBDA, null_proportion, q_values
from anomaly_cli.statistics.prediction_limit import normal_limit

Floats = NDArray[np.float64]
REPEATABLE = settings(deadline=None, derandomize=True, max_examples=100)
SCORES = st.lists(st.integers(0, 12).map(lambda tenths: tenths / 10), min_size=1, max_size=30)  # many ties
SEEDS = st.integers(0, 2**20)
VALUES = st.lists(st.floats(-100, 100), min_size=2, max_size=150)
P_VALUES = st.lists(st.integers(1, 40).map(lambda count: count / 40), min_size=1, max_size=40)


def normal_deviations(rng: np.random.Generator, count: int, scales: int = 3) -> Floats:
    """Log-normal deviations whose scales rise and fall together, as those of real images do."""
    common = rng.normal(size=(count, 1))
    deviations: Floats = np.exp(0.3 * common + 0.2 * rng.normal(size=(count, scales)) + np.arange(scales))
    return deviations


def slow_p_value(score: float, normal_scores: list[float]) -> float:
    return (1 + sum(1 for normal in normal_scores if normal >= score)) / (len(normal_scores) + 1)


def slow_share(p_values: list[float]) -> float:
    above = sum(1 for p in p_values if p > STOREY_LAMBDA)
    return min(1.0, (above + 1) / (len(p_values) * (1 - STOREY_LAMBDA)))


def slow_step_up(p_values: list[float], fdr: float) -> set[int]:
    """Flag as Benjamini and Hochberg wrote it: the k smallest, k the last rank under the line."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    share = slow_share(p_values)
    last = 0
    for rank, index in enumerate(order, start=1):
        if p_values[index] * share <= rank / len(p_values) * fdr:
            last = rank
    return set(order[:last])


def slow_fused(standard: list[float], weights: list[float]) -> float:
    return 3 * math.log(sum(w * math.exp(z / 3) for z, w in zip(standard, weights, strict=True)))


@given(st.lists(st.tuples(st.floats(-6, 60), st.floats(0, 1)), min_size=1, max_size=6))
@REPEATABLE
def test_components_are_fused_by_their_smooth_maximum(components: list[tuple[float, float]]) -> None:
    standard, weights = [z for z, _ in components], [w + 1e-3 for _, w in components]

    value = float(fuse_scores(np.array([standard]), np.array(weights))[0])

    assert value == pytest.approx(slow_fused(standard, weights), abs=1e-9)


def test_a_component_without_weight_has_no_effect() -> None:
    standard, weights = np.array([[1.0, 50.0, 2.0]]), np.array([0.5, 0.0, 0.5])

    np.testing.assert_allclose(fuse_scores(standard, weights), fuse_scores(standard[:, ::2], weights[::2]))


def test_one_strong_component_outweighs_two_weak_ones() -> None:
    weights = np.full(3, 1 / 3)
    sure, spread = fuse_scores(np.array([[9.0, 0.0, 0.0], [3.0, 3.0, 3.0]]), weights)

    assert sure > spread


@given(SCORES, SCORES)
@REPEATABLE
def test_p_values_equal_counting_with_ties(normal_scores: list[float], scores: list[float]) -> None:
    expected = [slow_p_value(score, normal_scores) for score in scores]

    p_values = conformal_p_values(np.sort(normal_scores), scores)

    np.testing.assert_allclose(p_values, expected, rtol=1e-12)


@given(SCORES)
@REPEATABLE
def test_a_higher_score_never_has_a_higher_p_value(normal_scores: list[float]) -> None:
    p_values = conformal_p_values(np.sort(normal_scores), np.linspace(-1, 2, 31))

    assert (np.diff(p_values) <= 0).all()
    assert p_values[0] == 1
    assert p_values[-1] == pytest.approx(1 / (len(normal_scores) + 1))


def test_p_values_of_normal_images_are_uniform() -> None:
    rng = np.random.default_rng(0)
    runs, n = 4000, 19
    draws = rng.gamma(2.0, size=(runs, n + 1))

    p_values = [float(conformal_p_values(np.sort(each[:n]), each[n:])[0]) for each in draws]

    counts = np.bincount(np.round(np.array(p_values) * (n + 1)).astype(int), minlength=n + 2)[1:]
    expected = runs / (n + 1)
    assert counts.sum() == runs
    assert ((counts - expected) ** 2 / expected).sum() < 43.8  # 99.9th percentile of χ² with 19 degrees of freedom


def test_p_values_stay_valid_through_the_whole_calibration() -> None:
    rng = np.random.default_rng(1)
    p_values = []
    for _ in range(400):
        deviations = normal_deviations(rng, 60 + 10)
        calibration = Calibration.fit(deviations[:60], np.ones(3))
        p_values.append(calibration.p_values(calibration.scores(deviations[60:])[0]))

    pooled = np.concatenate(p_values)

    for level in (0.02, 0.05, 0.1, 0.25, 0.5):
        # Ten images of a run share their normals, so the draws count as fewer than 4,000.
        assert (pooled <= level).mean() <= level + 4 * math.sqrt(level * (1 - level) / 1000)


def test_flagging_at_a_rate_keeps_the_mean_false_discovery_share_below_it() -> None:
    rng = np.random.default_rng(2)
    shares = []
    for _ in range(300):
        normal_scores = np.sort(rng.normal(size=300))
        scores = np.concatenate([rng.normal(size=80), rng.normal(4.0, size=20)])  # the last 20 are anomalous
        flagged = q_values(conformal_p_values(normal_scores, scores)) <= 0.1
        shares.append(flagged[:80].sum() / max(1, flagged.sum()))

    assert np.mean(shares) < 0.1 + 4 * np.std(shares) / math.sqrt(300)
    assert np.mean(shares) > 0.03  # flags nearly as much as it may: the share of normal images is used


@given(P_VALUES)
@REPEATABLE
def test_the_share_of_normal_images_equals_counting(p_values: list[float]) -> None:
    share = null_proportion(p_values)

    assert share == pytest.approx(slow_share(p_values))
    assert 0 < share <= 1


def test_the_share_of_normal_images_is_estimated_from_above() -> None:
    rng = np.random.default_rng(3)

    shares = [null_proportion(np.concatenate([rng.random(140), np.full(60, 0.01)])) for _ in range(200)]

    assert 0.7 <= np.mean(shares) < 0.74


@given(P_VALUES, st.sampled_from([0.0123, 0.0501, 0.1003, 0.3001, 0.7001]))  # never equal to a step of the rule
@REPEATABLE
def test_flags_by_q_value_equal_the_slow_step_up_rule(p_values: list[float], fdr: float) -> None:
    flagged = set(np.flatnonzero(q_values(p_values) <= fdr).tolist())

    assert flagged == slow_step_up(p_values, fdr)


@given(P_VALUES)
@REPEATABLE
def test_q_values_keep_the_order_of_p_values_and_stay_in_range(p_values: list[float]) -> None:
    q = q_values(p_values)

    assert ((q > 0) & (q <= 1)).all()
    assert (np.diff(q[np.argsort(p_values, kind="stable")]) >= -1e-12).all()
    assert (q >= np.array(p_values) * null_proportion(p_values) - 1e-12).all()


@given(P_VALUES, SEEDS)
@REPEATABLE
def test_q_values_belong_to_their_image_whatever_the_order(p_values: list[float], seed: int) -> None:
    order = np.random.default_rng(seed).permutation(len(p_values))

    np.testing.assert_allclose(q_values(np.array(p_values)[order]), q_values(p_values)[order], rtol=1e-12)


def test_no_image_gives_no_q_value() -> None:
    assert q_values([]).shape == (0,)


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=98))
@REPEATABLE
def test_the_limit_of_few_normal_images_is_never_below_the_largest(values: list[float]) -> None:
    assert normal_limit(values) >= max(values)


@pytest.mark.parametrize("n", [2, 5, 8, 10])
def test_the_limit_of_very_few_normal_images_lies_above_the_largest(n: int) -> None:
    for seed in range(50):
        values = np.random.default_rng(seed).gamma(2.0, size=n)

        assert normal_limit(values) > values.max()


@given(VALUES, st.floats(0, 50))
@REPEATABLE
def test_the_limit_never_falls_when_the_largest_value_rises(values: list[float], rise: float) -> None:
    ordered = sorted(values)
    raised = [*ordered[:-1], ordered[-1] + rise]

    assert normal_limit(raised) >= normal_limit(ordered) - 1e-9


@given(VALUES, st.floats(0.01, 100), st.floats(-100, 100))
@REPEATABLE
def test_the_limit_moves_with_the_unit_of_the_values(values: list[float], scale: float, shift: float) -> None:
    moved = normal_limit(np.array(values) * scale + shift)

    assert moved == pytest.approx(normal_limit(values) * scale + shift, rel=1e-9, abs=1e-6)


@pytest.mark.parametrize(("n", "highest_share"), [(10, 0.03), (30, 0.02), (100, 0.015), (1000, 0.012)])
def test_about_one_normal_image_in_a_hundred_exceeds_the_limit_or_fewer(n: int, highest_share: float) -> None:
    rng = np.random.default_rng(n)
    runs = 2000
    draws = rng.normal(size=(runs, n + 1))

    beyond = np.mean([each[n] > normal_limit(each[:n]) for each in draws])

    assert beyond <= highest_share


def test_the_limit_of_many_values_is_close_to_their_99th_percentile() -> None:
    values = np.random.default_rng(0).normal(size=20_000)

    assert normal_limit(values) == pytest.approx(2.326, abs=0.06)


def test_the_unit_is_one_half_at_the_median_and_one_at_the_limit() -> None:
    values = np.random.default_rng(0).gamma(2.0, size=201)
    unit = ScoreScale.fit(values)

    assert unit.apply(np.median(values)) == 0.5
    assert unit.apply(normal_limit(values)) == pytest.approx(1.0)
    assert unit.apply(normal_limit(values) * 2 - np.median(values)) == pytest.approx(1.5)


@given(st.floats(-50, 50), st.floats(0.01, 100), st.lists(st.integers(-2000, 10_000), min_size=2, unique=True))
@REPEATABLE
def test_the_unit_is_strictly_increasing_and_positive(median: float, spread: float, steps: list[int]) -> None:
    values = median + spread * np.sort(np.array(steps)) / 100

    applied = ScoreScale(median, median + spread).apply(values)

    assert (np.diff(applied) > 0).all()
    assert (applied > 0).all()


def test_the_unit_has_no_kink_at_the_median() -> None:
    unit, step = ScoreScale(2.0, 5.0), 1e-6

    below, at, above = unit.apply([2.0 - step, 2.0, 2.0 + step])

    assert (above - at) == pytest.approx(at - below, rel=1e-5)


def test_the_unit_keeps_the_shape_of_a_map() -> None:
    assert ScoreScale(0.0, 1.0).apply(np.zeros((2, 3, 4))).shape == (2, 3, 4)


def test_the_unit_of_identical_values_is_finite() -> None:
    unit = ScoreScale.fit([3.0] * 10)

    assert np.isfinite(unit.apply([0.0, 3.0, 3.1])).all()
    assert unit.apply(3.0) == 0.5


def test_identical_normal_images_give_finite_scores() -> None:
    calibration = Calibration.fit(np.full((10, 3), 0.2), np.ones(3))

    scores, scales = calibration.scores(np.array([[0.2] * 3, [0.4] * 3]))

    assert np.isfinite(scores).all()
    assert np.isfinite(scales).all()
    assert scores[1] > scores[0] == 0.5


def test_half_of_the_held_out_normal_images_score_below_one_half() -> None:
    deviations = normal_deviations(np.random.default_rng(0), 101)
    calibration = Calibration.fit(deviations, np.ones(3))

    assert np.median(calibration.normal_scores) == pytest.approx(0.5)
    np.testing.assert_allclose(calibration.normal_scores, np.sort(calibration.scores(deviations)[0]))


def test_the_deviations_of_held_out_normal_images_are_kept_in_ascending_order_of_score() -> None:
    deviations = normal_deviations(np.random.default_rng(0), 60)
    calibration = Calibration.fit(deviations, np.ones(3))

    scores, _ = calibration.scores(calibration.normal_deviations)

    np.testing.assert_allclose(scores, calibration.normal_scores, rtol=1e-12)
    assert {tuple(row) for row in calibration.normal_deviations} == {tuple(row) for row in deviations}


@given(SEEDS, st.integers(3, 40))
@REPEATABLE
def test_scores_do_not_depend_on_the_order_of_images(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    normal, incoming = normal_deviations(rng, count), normal_deviations(rng, count)
    order = rng.permutation(count)

    calibration, shuffled = (Calibration.fit(each, np.ones(3)) for each in (normal, normal[order]))
    scores, scales = calibration.scores(incoming)

    np.testing.assert_allclose(shuffled.scores(incoming)[0], scores, rtol=1e-9)
    np.testing.assert_allclose(calibration.scores(incoming[order])[0], scores[order], rtol=1e-12)
    np.testing.assert_allclose(calibration.scores(incoming[order])[1], scales[order], rtol=1e-12)


def test_an_image_scored_alone_gets_the_score_it_gets_in_a_batch() -> None:
    rng = np.random.default_rng(0)
    calibration = Calibration.fit(normal_deviations(rng, 50), np.array([3.0, 1.0, 2.0]))
    incoming = normal_deviations(rng, 40)

    alone = [calibration.scores(row[None])[0][0] for row in incoming]

    np.testing.assert_allclose(alone, calibration.scores(incoming)[0], rtol=1e-12)


@pytest.mark.parametrize("factor", [1e-3, 40.0])
def test_scores_do_not_depend_on_the_unit_of_a_scale(factor: float) -> None:
    rng = np.random.default_rng(0)
    normal, incoming = normal_deviations(rng, 50), normal_deviations(rng, 20)
    units = np.array([1.0, factor, 1.0])

    scores, _ = Calibration.fit(normal, np.ones(3)).scores(incoming)
    rescaled, _ = Calibration.fit(normal * units, np.ones(3)).scores(incoming * units)

    np.testing.assert_allclose(rescaled, scores, rtol=1e-9)


@pytest.mark.parametrize("scale", [0, 1, 2])
def test_a_larger_deviation_at_any_scale_gives_a_higher_score(scale: int) -> None:
    rng = np.random.default_rng(0)
    calibration = Calibration.fit(normal_deviations(rng, 50), np.ones(3))
    image = normal_deviations(rng, 1)
    worse = image.copy()
    worse[0, scale] *= 1.5

    before, after = calibration.scores(image), calibration.scores(worse)

    assert after[0][0] > before[0][0]
    assert after[1][0, scale] > before[1][0, scale]
    np.testing.assert_array_equal(np.delete(after[1], scale, 1), np.delete(before[1], scale, 1))


def test_a_scale_of_weight_zero_does_not_move_the_score() -> None:
    rng = np.random.default_rng(0)
    calibration = Calibration.fit(normal_deviations(rng, 50), np.array([1.0, 0.0, 1.0]))
    image = normal_deviations(rng, 1)

    worse = image * np.array([1, 9, 1])

    assert calibration.scores(worse)[0] == pytest.approx(calibration.scores(image)[0])


def test_only_the_ratio_of_the_weights_counts() -> None:
    rng = np.random.default_rng(0)
    normal, incoming = normal_deviations(rng, 50), normal_deviations(rng, 10)
    weights = np.array([1.0, 2.0, 5.0])

    scores, tenfold = (Calibration.fit(normal, w).scores(incoming)[0] for w in (weights, 10 * weights))

    np.testing.assert_allclose(tenfold, scores, rtol=1e-12)
