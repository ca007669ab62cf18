"""Where pictures go: below the folder that absolute inputs have in common, relative ones as they are."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import anomaly

from anomaly_cli.errors import ConfigError
from anomaly_cli.review.mirror import Mirror, check_pictures


@pytest.mark.parametrize(
    ("folders", "path", "expected"),
    [
        (["/data/a"], "/data/a/x.png", "out/x.png"),
        (["/data/a"], "/data/a/deep/x.png", "out/deep/x.png"),
        (["/data/a", "/data/b/c"], "/data/b/c/x.png", "out/b/c/x.png"),
        (["/data/a", "/data/ab"], "/data/ab/x.png", "out/ab/x.png"),
        (["/data", "/other"], "/other/x.png", "out/other/x.png"),
        (["/data/a/../b"], "/data/a/../b/x.png", "out/x.png"),
        (["a"], "a/x.png", "out/a/x.png"),
        (["s3:/bucket"], "s3:/bucket/x.png", "out/s3:/bucket/x.png"),
    ],
)
def test_an_absolute_path_is_mirrored_below_what_the_inputs_have_in_common(
    folders: list[str], path: str, expected: str
) -> None:
    mirror = Mirror.of(map(Path, folders))

    assert mirror.target(Path(path), Path("out")) == Path(expected)


def test_beside_relative_inputs_absolute_ones_keep_all_their_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")

    mirror = Mirror.of([Path("a"), tmp_path / "b"])

    assert mirror.target(Path("b/x.png"), Path("out")) == Path("out/b/x.png")
    assert mirror.target(tmp_path / "b" / "x.png", Path("out")) == Path("out/__/b/x.png")
    assert mirror.target(tmp_path / "work" / "a" / "x.png", Path("out")) == Path("out/a/x.png")


def test_two_options_that_would_write_one_file_are_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        check_pictures([("--out", Path("a/x.png")), ("--masks", Path("a/x.png"))])

    assert str(caught.value) == "--out and --masks would both write a/x.png: name two folders"


def test_pictures_of_absolute_inputs_do_not_repeat_the_whole_path(here: Path) -> None:
    result = anomaly("heatmap", here / "incoming", "--out", "drawn", "--raw", "npy", "--masks", "masks")

    names = {path.relative_to("incoming") for path in Path("incoming").rglob("*.*g")}
    assert result.exit_code == 0, result.stderr
    assert {path.relative_to("masks") for path in Path("masks").rglob("*.*g")} == {
        Path(f"{name}.png") for name in names
    }
    assert {path.relative_to("drawn") for path in Path("drawn").rglob("*.*")} == {
        Path(f"{name}{suffix}") for name in names for suffix in (".png", ".map.npy")
    }
