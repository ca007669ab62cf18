"""`anomaly heatmap` on odd names, and the marker in what it writes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from command_line import anomaly
from PIL import Image

from anomaly_cli.images.own_output import is_own_output
from anomaly_cli.review.mirror import LONGEST_NAME, Mirror


def test_names_that_leave_no_room_for_a_suffix_are_drawn_under_shortened_ones(here: Path) -> None:
    names = ["\u4e2d" * 80 + ".png", "n" * 251 + ".png", "short.png"]
    Path("long").mkdir()
    for name in names:
        shutil.copy("incoming/good0.png", Path("long", name))

    result = anomaly("heatmap", "long", "--raw", "png16", "--out", "drawn")

    assert result.exit_code == 0, result.stderr
    assert result.stderr == (
        "warning: 2 overlays under a shortened name, the image's being too long, "
        f"first {Mirror().target(Path('long', names[1]), Path('drawn'))}.png\n3 overlays in drawn\n"
    )
    written = list(Path("drawn/long").iterdir())
    assert len(written) == 6
    assert all(is_own_output(path) for path in written)
    for path in written:
        with Image.open(path) as picture:
            picture.verify()


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a" * LONGEST_NAME, "a" * LONGEST_NAME),
        ("a" * (LONGEST_NAME + 1), "a" * (LONGEST_NAME - 9) + "~"),
        ("\u4e2d" * 80, "\u4e2d" * ((LONGEST_NAME - 9) // 3) + "~"),
        ("a" * 200 + "\udce9" * 55, "a" * 200 + "~"),
    ],
)
def test_a_name_is_cut_between_characters_and_stays_unique(name: str, shown: str) -> None:
    target = Mirror().target(Path("in", name), Path("out"))

    assert target.parent == Path("out/in")
    assert target.name.startswith(shown)
    assert len(target.name.encode()) <= LONGEST_NAME
    assert len({Mirror().target(Path("in", name + end), Path("out")) for end in ("", "0", "1")}) == 3
