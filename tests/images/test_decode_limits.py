"""Malformed files: bombs are refused before they are decoded, and every other damage is a row, in silence."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import anomaly
from PIL import Image
from shared_run import Trained

from anomaly_cli.errors import UnreadableImageError
from anomaly_cli.images import decode_limits
from anomaly_cli.images.decode import load_image, read_pixels
from benchmarks.robustness import malformed, malformed_files
from benchmarks.robustness.malformed_files import BOMBS, MUTATIONS, VARIANTS, sound, write_malformed

FILES = 200
SCANS = "too large: {} scans of 5000 x 5000 pixels"
EXPANDS = "too large: {} MB of pixels in a file of {} bytes"
REASONS = {
    "png rgb": EXPANDS.format(1452, 1436055),
    "png rgba": EXPANDS.format(1936, 1914722),
    "png gray of 16 bit": EXPANDS.format(968, 957411),
    "png beyond the limit": "too large: 30000 x 30000 pixels, the limit is 500000000 pixels",
    "png text and profile": "cannot be decoded: Decompressed data too large for PngImagePlugin.MAX_TEXT_CHUNK",
    "tiff deflate": EXPANDS.format(1200, 1186886),
    "gif": EXPANDS.format(484, 37),
    "gif beyond the limit": "too large: 65535 x 65535 pixels, the limit is 500000000 pixels",
    "bmp": EXPANDS.format(484, 3873080),
    "jpeg of 30 scans": SCANS.format(26),
    "jpeg of 500 scans": SCANS.format(506),
}


@pytest.mark.parametrize("name", REASONS)
def test_a_bomb_is_refused_and_says_what_it_would_become(tmp_path: Path, name: str) -> None:
    suffix, content = BOMBS[name]()
    path = tmp_path / f"bomb{suffix}"
    path.write_bytes(content)

    for read in (lambda: load_image(path, 64), lambda: read_pixels(path)):
        with pytest.raises(UnreadableImageError) as caught:
            read()
        # zlib's builds differ by a few bytes in what they make of a thousandth of the picture.
        assert caught.value.reason.split(" in a file")[0] == REASONS[name].split(" in a file")[0]


def test_what_is_allowed_depends_on_the_size_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_limits, "FREE_BYTES", 10_000)
    small, large = tmp_path / "small.png", tmp_path / "large.png"
    Image.new("RGB", (300, 300)).save(small)
    Image.effect_noise((300, 300), 60).convert("RGB").save(large)

    assert load_image(large, 64).width == 300
    with pytest.raises(UnreadableImageError) as caught:
        load_image(small, 64)
    assert caught.value.reason == f"too large: 0 MB of pixels in a file of {small.stat().st_size} bytes"


def test_a_jpeg_may_be_as_blank_as_it_likes_and_have_as_many_scans_as_encoders_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode_limits, "FREE_BYTES", 10_000)
    monkeypatch.setattr(decode_limits, "FREE_SCANNED", 500_000)
    Image.new("RGB", (600, 600)).save(tmp_path / "blank.jpg")
    Image.effect_noise((600, 600), 60).convert("RGB").save(tmp_path / "progressive.jpg", progressive=True, quality=95)

    assert load_image(tmp_path / "blank.jpg", 64).width == 600
    assert load_image(tmp_path / "progressive.jpg", 64).width == 600


# --- The makers of malformed files ---


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_undamaged_pictures_can_be_read(tmp_path: Path, variant: str) -> None:
    suffix, content = sound(variant)
    (tmp_path / f"a{suffix}").write_bytes(content)

    assert load_image(tmp_path / f"a{suffix}", 64).height == malformed_files.SIDE


def test_the_same_seed_makes_the_same_files_of_every_kind(tmp_path: Path) -> None:
    first, again, other = (
        [path.read_bytes() for path in write_malformed(tmp_path / name, 40, seed, bombs=False)]
        for name, seed in (("first", 1), ("again", 1), ("other", 2))
    )

    assert first == again != other
    names = {path.stem.partition(" ")[2] for path in (tmp_path / "first").iterdir()}
    assert names == set(MUTATIONS)


def test_of_malformed_files_each_is_a_row_and_nothing_else_is_said(trained: Trained, tmp_path: Path) -> None:
    write_malformed(tmp_path / "files", FILES, 3, bombs=False)
    table = tmp_path / "scores.jsonl"

    result = anomaly("score", tmp_path / "files", "--model", trained.model, "--out", table, "--quiet")

    rows = [json.loads(line) for line in table.read_bytes().splitlines()]
    assert (result.exit_code, result.stderr, len(rows)) == (0, "", FILES)
    unreadable = [row for row in rows if row["status"] == "unreadable"]
    assert 0.5 * FILES < len(unreadable) < FILES
    assert all(row["reason"].isprintable() and 0 < len(row["reason"]) <= 120 for row in unreadable)


def test_libtiff_prints_nothing_about_damaged_files(tmp_path: Path) -> None:
    suffix, content = sound("tiff fax")
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content[:8] + b"\0" * 20 + content[28:])
    code = (
        "import sys, pathlib; from anomaly_cli.images import decode; decode.load_image(pathlib.Path(sys.argv[1]), 64)"
    )

    result = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)

    assert "Fax4Decode" not in result.stderr


# --- The benchmark ---


def test_the_benchmark_counts_rows_and_reasons_and_times_each_file(trained: Trained, tmp_path: Path) -> None:
    paths = write_malformed(tmp_path / "files", 14, 0, bombs=False)

    outcome = malformed.score(tmp_path / "files", trained.model, tmp_path)

    assert outcome.failures(14) == []
    assert (outcome.exit_code, outcome.rows) == (0, 14)
    assert outcome.readable + sum(outcome.reasons.values()) == 14
    assert outcome.slowest in {path.name for path in paths}
    assert 0 < outcome.slowest_s < outcome.wall_s
    assert outcome.failures(15) == ["14 rows for 15 files"]
