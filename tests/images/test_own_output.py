"""Own output is recognised by its content alone; nothing else is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from anomaly_cli.images.own_output import is_own_output
from anomaly_cli.outputs import png_mark


def test_a_marked_png_is_recognised_under_any_name_and_kind(tmp_path: Path) -> None:
    for mode in ("RGB", "L", "P", "I;16"):
        path = tmp_path / f"renamed {mode}.PNG"
        Image.new(mode, (300, 200)).save(path, pnginfo=png_mark())

        assert is_own_output(path), mode


def test_other_files_are_not(tmp_path: Path) -> None:
    other = PngInfo()
    other.add_text("Software", "Another tool")
    other.add_text("Comment", "drawn by anomaly_cli")
    Image.new("RGB", (9, 9)).save(tmp_path / "other.png", pnginfo=other)
    Image.new("RGB", (9, 9)).save(tmp_path / "plain.png")
    Image.new("RGB", (9, 9)).save(tmp_path / "photo.jpg")
    (tmp_path / "empty.png").touch()
    (tmp_path / "folder.png").mkdir()

    assert not any(is_own_output(path) for path in tmp_path.iterdir())
    assert not is_own_output(tmp_path / "gone.png")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_named_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")

    assert not is_own_output(tmp_path / "pipe.png")
