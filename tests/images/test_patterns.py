"""`--include` and `--exclude`: which of the files found in folders count."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from command_line import anomaly, rows_of
from hypothesis import given
from hypothesis import strategies as st

from anomaly_cli.errors import ConfigError
from anomaly_cli.images.find import find_images
from anomaly_cli.images.patterns import PathPatterns

NOT_UTF8 = os.fsdecode(b"caf\xe9.png")


@pytest.mark.parametrize(
    ("pattern", "matched", "others"),
    [
        ("*.png", ["a.png", "x/y/a.png", ".png", "a\nb.png", NOT_UTF8], ["a.PNG", "a.png/b.jpg", "a.pngx"]),
        ("a?.png", ["ab.png", "x/ab.png"], ["a.png", "abc.png", "x/a/.png"]),
        ("[ab].png", ["a.png", "x/b.png"], ["c.png", "[ab].png"]),
        ("[!a].png", ["b.png"], ["a.png", "x/a.png"]),
        ("[[]1].png", ["[1].png"], ["1.png"]),
        ("x/*.png", ["x/a.png"], ["a.png", "x/y/a.png", "w/x/a.png"]),
        ("*/a.png", ["x/a.png"], ["a.png", "x/y/a.png"]),
        ("**/a.png", ["a.png", "x/a.png", "x/y/a.png"], ["x/ba.png"]),
        ("x/**/a.png", ["x/a.png", "x/y/a.png", "x/y/z/a.png"], ["a.png", "y/a.png", "w/x/a.png"]),
        ("x/**", ["x/a.png", "x/y/a.png"], ["x", "a.png", "w/x/a.png"]),
        ("x/", ["x/a.png", "x/y/a.png"], ["x", "a.png", "w/x/a.png"]),
        ("**/x/**", ["x/a.png", "w/x/y/a.png"], ["a.png", "w/x"]),
        ("/*.png", ["a.png"], ["x/a.png"]),
        ("**", ["a.png"], []),
        ("/**", ["a.png", "x/a.png"], []),
        ("a+(b).png", ["a+(b).png"], ["aab.png"]),
    ],
)
def test_a_pattern_matches_these_paths_and_not_those(pattern: str, matched: list[str], others: list[str]) -> None:
    patterns = PathPatterns(include=(pattern,))

    assert [path for path in matched + others if patterns.match(path)] == matched


def slow_match(path: str, pattern: str) -> bool:
    """Match by one regular expression for the whole path."""
    expression = "".join(
        {"**/": "(?:[^/]*/)*", "**": ".*", "*": "[^/]*", "?": "[^/]"}.get(part, re.escape(part))
        for part in re.split(r"((?<![^/])\*\*/|(?<![^/])\*\*$|\*|\?)", pattern)
    )
    return re.fullmatch(expression, path, re.DOTALL) is not None


@given(
    path=st.lists(st.text("ab.", min_size=1, max_size=3), min_size=1, max_size=4).map("/".join),
    pattern=st.lists(st.sampled_from(["**", "*", "a", "b*", "?", "a?"]), min_size=2, max_size=4).map("/".join),
)
def test_patterns_with_a_slash_mean_what_one_regular_expression_says(path: str, pattern: str) -> None:
    assert PathPatterns(include=(pattern,)).match(path) == slow_match(path, pattern)


def test_several_patterns_are_joined_and_exclude_wins() -> None:
    patterns = PathPatterns(include=("*.png", "keep/**"), exclude=("*_mask.png", "old/**"))

    assert [p for p in ("a.png", "a.jpg", "keep/a.jpg", "a_mask.png", "old/a.png") if patterns.match(p)] == [
        "a.png",
        "keep/a.jpg",
    ]


@pytest.mark.parametrize("pattern", ["", "/"])
@pytest.mark.parametrize("option", ["include", "exclude"])
def test_an_empty_pattern_is_refused(option: str, pattern: str) -> None:
    with pytest.raises(ConfigError, match=rf"^--{option} needs a pattern such as '\*\.png'$"):
        PathPatterns(**{option: (pattern,)})


def test_paths_are_matched_below_the_folder_that_was_given_and_named_files_always_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("in/a.png", "in/cam/b.png", "in/cam/" + NOT_UTF8, "in/cam/deep/c.png", "cam/d.png"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    cam = PathPatterns(include=("cam/*",))

    assert find_images([Path("in")], cam) == [Path("in/cam/b.png"), Path("in/cam", NOT_UTF8)]
    assert find_images([Path()], cam) == [Path("cam/d.png")]
    assert find_images([tmp_path / "in" / "cam"], cam) == []
    assert find_images([Path("in/a.png")], cam) == [Path("in/a.png")]


def test_score_takes_only_what_the_patterns_let_pass(here: Path) -> None:
    options = ("--include", "bad*", "--include", "deep/**", "--exclude", "bad1.*")

    result = anomaly("score", "incoming", *options, "incoming/good0.png", "-q", "--out", "-")

    assert sorted(row["path"] for row in rows_of(result.stdout_bytes)) == [
        "incoming/bad0.jpg",
        "incoming/bad2.jpg",
        "incoming/deep/good one.png",
        "incoming/good0.png",
    ]


def test_heatmap_draws_only_what_the_patterns_let_pass(here: Path) -> None:
    result = anomaly("heatmap", "incoming", "--include", "bad0.*", "-q")

    assert result.exit_code == 0
    assert [path.name for path in Path("heatmaps").rglob("*.png")] == ["bad0.jpg.png"]


def test_train_leaves_out_what_is_excluded(here: Path) -> None:
    result = anomaly("train", "normal", "--exclude", "*.jpg", "--exclude", "empty.*", "-m", "new.safetensors")

    assert result.stderr.startswith("error: 6 readable images, at least 8 are needed")


@pytest.mark.parametrize("command", ["train", "score", "heatmap", "audit"])
def test_patterns_that_let_nothing_pass_are_named_in_the_error(here: Path, command: str) -> None:
    result = anomaly(command, "normal", "--include", "*.tif")

    assert result.stderr == "error: no image found in normal that --include and --exclude let pass\n"
    assert (result.stdout, result.exit_code) == ("", 1)
