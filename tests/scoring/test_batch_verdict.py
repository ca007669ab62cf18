"""The verdict on a batch: its figures from the rows, its JSON, its gates, and a run over a drifted folder."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from command_line import anomaly
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from shared_run import SETTINGS, texture

from anomaly_cli.config import FlagRule, Rule
from anomaly_cli.detector.calibration import Calibration
from anomaly_cli.errors import ConfigError
from anomaly_cli.scoring.batch_verdict import Gate, Verdict, expected_false_alarms, judge_batch, write_verdict
from anomaly_cli.scoring.rows import flag_rows
from anomaly_cli.statistics.fdr import null_proportion
from anomaly_cli.tables.row import Row, rank_rows

REPEATABLE = settings(deadline=None, derandomize=True, max_examples=60)
P_VALUES = st.lists(st.integers(1, 21).map(lambda count: count / 21), min_size=1, max_size=40)  # many ties
RULES = st.one_of(
    st.sampled_from([0.051, 0.123, 0.4]).map(lambda value: FlagRule(Rule.FDR, value)),
    st.integers(0, 21).map(lambda value: FlagRule(Rule.THRESHOLD, value / 10.5)),
    st.integers(1, 50).map(lambda value: FlagRule(Rule.TOP, value)),
    st.sampled_from([0.3, 1.1, 5.7]).map(lambda value: FlagRule(Rule.MAX_FALSE_ALARMS, value)),
)
VERDICT = Verdict(
    model="m",
    normal_images=99,
    smallest_p=0.01,
    files=40,
    readable=38,
    unreadable=2,
    rule="--fdr 0.05",
    flagged=4,
    expected_false_alarms=0.2,
    anomaly_share=0.1,
    anomaly_share_low=0.05,
    anomaly_share_high=0.2,
    drift=True,
    drift_p_value=0.0004,
    drift_scale="8",
    drift_nearer=False,
    worst_path="a.png",
    worst_score=3.0,
)


def rows_with(p_values: list[float]) -> list[Row]:
    rows = [Row(path=f"{i:03}.png", score=2 - p * 2, p_value=p, scales=(1.0,)) for i, p in enumerate(p_values)]
    return [*rows, Row(path="broken.png", status="unreadable", reason="empty file")]


# What is flagged, and what to expect of it


@given(P_VALUES, RULES)
@REPEATABLE
def test_every_rule_flags_the_most_anomalous_and_never_the_unreadable(p_values: list[float], rule: FlagRule) -> None:
    rows = flag_rows(rows_with(p_values), rule)

    flags = [row.flagged for row in rows]
    assert rows == [replace(row, flagged=flag) for row, flag in zip(rank_rows(rows), flags, strict=True)]
    assert flags == sorted(flags, reverse=True)
    assert not flags[-1]


@given(P_VALUES, st.integers(1, 50))
@REPEATABLE
def test_the_top_are_exactly_so_many_also_with_ties(p_values: list[float], top: int) -> None:
    flagged = sum(row.flagged for row in flag_rows(rows_with(p_values), FlagRule(Rule.TOP, top)))

    assert flagged == min(top, len(p_values))


@given(P_VALUES, RULES)
@REPEATABLE
def test_expected_false_alarms_equal_counting_and_keep_what_the_rule_promises(
    p_values: list[float], rule: FlagRule
) -> None:
    readable = flag_rows(rows_with(p_values), rule)[:-1]

    expected = expected_false_alarms(readable)

    flagged = [row.p_value for row in readable if row.flagged and row.p_value is not None]
    assert expected == pytest.approx(
        min(len(flagged), max(flagged, default=0) * len(p_values) * null_proportion(p_values))
    )
    if rule.kind is Rule.FDR:
        assert expected <= rule.value * len(flagged) + 1e-9
    if rule.kind is Rule.MAX_FALSE_ALARMS:
        assert expected <= rule.value + 1e-9


def test_false_alarms_stay_below_what_was_allowed_on_average() -> None:
    rng = np.random.default_rng(0)
    alarms = []
    for _ in range(400):
        normal, scores = np.sort(rng.normal(size=50)), rng.normal(size=60)
        p = (1 + 50 - np.searchsorted(normal, scores)) / 51
        rows = [Row(path=str(i), score=s, p_value=v) for i, (s, v) in enumerate(zip(np.exp(scores), p, strict=True))]
        alarms.append(sum(row.flagged for row in flag_rows(rows, FlagRule(Rule.MAX_FALSE_ALARMS, 3))))

    assert 1.5 < np.mean(alarms) < 3.2


# The verdict


def judged(count: int, normals: int = 30) -> Verdict:
    rng = np.random.default_rng(0)
    calibration = Calibration.fit(np.exp(rng.normal(size=(normals, 3))), np.ones(3))
    scores, scales = calibration.scores(np.exp(rng.normal(size=(count, 3))))
    rows = [
        Row(path=f"{i}.png", score=float(score), p_value=float(p), scales=tuple(each[1:]))
        for i, (score, p, each) in enumerate(zip(scores, calibration.p_values(scores), scales, strict=True))
    ]
    broken = Row(path="broken.png", status="unreadable", reason="empty file")
    rule = FlagRule(Rule.TOP, 2)
    return judge_batch(flag_rows([broken, *rows], rule), ("8", "16"), calibration, rule, Path("m.safetensors"))


def test_a_verdict_counts_files_and_names_the_worst() -> None:
    verdict = judged(40)

    assert (verdict.files, verdict.readable, verdict.unreadable, verdict.flagged) == (41, 40, 1, 2)
    assert (verdict.rule, verdict.model, verdict.normal_images) == ("--top 2", "m.safetensors", 30)
    assert verdict.smallest_p == pytest.approx(1 / 31)
    assert verdict.worst_score > 0.5
    assert not verdict.drift
    assert verdict.drift_scale in ("8", "16")
    assert verdict.anomaly_share is not None


@pytest.mark.parametrize(("count", "normals"), [(1, 30), (19, 30), (40, 19)])
def test_too_few_images_leave_share_and_drift_open(count: int, normals: int) -> None:
    verdict = judged(count, normals)

    assert [verdict.anomaly_share, verdict.anomaly_share_low, verdict.anomaly_share_high] == [None] * 3
    assert (verdict.drift, verdict.drift_p_value, verdict.drift_scale) == (False, None, None)


def test_json_gives_every_field_back_also_names_that_are_not_utf8(tmp_path: Path) -> None:
    verdict = replace(VERDICT, worst_path=os.fsdecode(b"caf\xe9.png"), anomaly_share=None)

    write_verdict(verdict, tmp_path / "verdict.json")

    read = json.loads((tmp_path / "verdict.json").read_bytes())
    assert read == asdict(verdict)
    assert os.fsencode(read["worst_path"]) == b"caf\xe9.png"


# Gates


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("flagged", "4 of 40 files"),
        ("flagged>3", "4 of 40 files"),
        ("flagged>4", None),
        ("flagged>9.9%", "4 of 40 files"),
        ("flagged>10%", None),
        ("unreadable", "2 of 40 files"),
        ("unreadable>1", "2 of 40 files"),
        ("unreadable>5%", None),
        ("drift", "p = 0.0004"),
    ],
)
def test_a_gate_trips_above_its_limit_only_and_says_why(text: str, why: str | None) -> None:
    assert Gate.parse(text).tripped_by(VERDICT) == why


def test_without_drift_its_gate_does_not_trip() -> None:
    for verdict in (replace(VERDICT, drift=False), replace(VERDICT, drift=False, drift_p_value=None)):
        assert Gate.parse("drift").tripped_by(verdict) is None


@pytest.mark.parametrize("text", ["", "drift>1", "flagged>", "flagged>-1", "flagged>1%%", "flagged >1", "rows"])
def test_what_is_no_gate_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--fail-on must be flagged"):
        Gate.parse(text)


# A run over a folder from another source


@pytest.fixture(scope="module")
def camera(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with 40 normal images, a model of them, 40 more from the same source and 40 from a darker one."""
    folder = tmp_path_factory.mktemp("camera")
    rng = np.random.default_rng(0)
    for name, light in (("normal", 1.0), ("same", 1.0), ("darker", 0.6)):
        (folder / name).mkdir()
        for i in range(40):
            Image.fromarray((light * texture(rng, 64, 64)).astype(np.uint8)).save(folder / name / f"{i:02}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("ANOMALY_DEVICE", "cpu")
        assert anomaly("train", "normal", *SETTINGS, "-q").exit_code == 0
        yield folder


def test_a_batch_from_another_source_is_called_so_and_trips_its_gate(camera: Path) -> None:
    result = anomaly("score", "darker", "--summary", "verdict.json", "--fail-on", "drift")

    verdict = json.loads(Path("verdict.json").read_text())
    assert result.exit_code == 3
    assert verdict["drift"]
    assert "warning: the batch as a whole differs from the normal images (drift, p " in result.stderr
    assert result.stderr.endswith(f"gate tripped: drift (p = {verdict['drift_p_value']:.2g})\n")


def test_a_batch_from_the_same_source_passes_and_its_share_is_estimated(camera: Path) -> None:
    result = anomaly("score", "same", "--summary", "verdict.json", "--fail-on", "drift")

    verdict = json.loads(Path("verdict.json").read_text())
    assert result.exit_code == 0
    assert "drift" not in result.stderr
    percent = [f"{100 * verdict[f'anomaly_share{end}']:.0f}" for end in ("", "_low", "_high")]
    assert f"about {percent[0]} % of the batch is anomalous (95 %: {percent[1]} to {percent[2]} %)\n" in result.stderr
    assert verdict["anomaly_share_low"] <= 0.05


def test_images_that_the_model_was_trained_on_are_reported_as_too_near(camera: Path) -> None:
    result = anomaly("score", "normal", "--summary", "verdict.json")

    verdict = json.loads(Path("verdict.json").read_text())
    assert (verdict["drift"], verdict["drift_nearer"]) == (True, True)
    assert "): nearer than new images can be; was the model trained on these, or are they blurred? " in result.stderr
