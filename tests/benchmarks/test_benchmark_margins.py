"""Margins to plain methods: each set against the best of the others, an earlier version among them."""

from __future__ import annotations

import pandas as pd
import pytest

from benchmarks.accuracy.margins import margins, summary


def rows(method: str, *figures: tuple[str, float]) -> list[dict[str, str | float]]:
    return [{"set": name, "method": method, "image_auroc": figure} for name, figure in figures]


RESULTS = pd.DataFrame(
    rows("ours", ("a", 0.9), ("a", 0.8), ("b", 0.7), ("c", 0.6))
    + rows("prototypes", ("a", 0.8), ("a", 0.8), ("b", 0.75), ("c", 0.5))
)


def test_the_margin_is_to_the_best_other_method_after_averaging_seeds() -> None:
    table = margins(RESULTS)

    assert table["margin"].tolist() == pytest.approx([0.05, -0.05, 0.1])
    assert table["best_other"].tolist() == pytest.approx([0.8, 0.75, 0.5])


def test_an_earlier_version_is_one_of_the_others_on_the_same_sets_only() -> None:
    before = pd.DataFrame(rows("ours", ("c", 0.65), ("z", 1.0)) + rows("prototypes", ("c", 0.99)))

    table = margins(RESULTS, before)

    assert list(table.index) == ["a", "b", "c"]
    assert table["best_other"].tolist() == pytest.approx([0.8, 0.75, 0.65])


def test_the_summary_counts_sets_and_shows_both_halves() -> None:
    lines = summary(margins(RESULTS)).splitlines()

    assert lines[0] == "won 2, lost 1 of 3 sets by more than 0.01; worst margin -0.050 (b)"
    assert lines[2] == "first half: ours 0.725, prototypes 0.650, best_other 0.650"
    assert lines[3].startswith("second half: ours 0.700, prototypes 0.750")
