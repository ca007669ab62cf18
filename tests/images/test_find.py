"""Which files are found in folders and lists."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from pictures import noise, saved
from PIL import Image, PngImagePlugin

from anomaly_cli.errors import InputError
from anomaly_cli.images import find
from anomaly_cli.images.decode import load_image
from anomaly_cli.images.find import find_images
from anomaly_cli.images.patterns import PathPatterns


def written(path: Path, data: bytes = b"") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return Path()


def test_folders_are_walked_for_visible_files_with_an_image_suffix(here: Path) -> None:
    for name in ("a.png", "sub/b.JPeG", "sub/deep/c.tiff", "d.heic"):
        written(here / name)
    for name in (".hidden.png", ".git/e.png", "notes.txt", "png", "f.png.bak", "g.ico"):
        written(here / name)

    found = find_images([here])

    assert found == [Path(name) for name in ("a.png", "d.heic", "sub/b.JPeG", "sub/deep/c.tiff")]


def test_named_files_are_listed_whatever_their_name(here: Path) -> None:
    named = [written(here / name) for name in (".hidden", "notes.txt")]

    assert find_images(named) == named


def test_paths_stay_as_given(here: Path) -> None:
    written(here / "sub/a.png")

    assert find_images([Path("sub/../sub")]) == [Path("sub/../sub/a.png")]
    assert find_images([here.absolute()]) == [here.absolute() / "sub/a.png"]


def test_overlapping_inputs_list_a_file_once(here: Path) -> None:
    written(here / "sub/a.png")

    assert find_images([here / "sub/a.png", here, here / "sub", here / "sub/a.png"]) == [Path("sub/a.png")]


def test_what_was_typed_and_is_missing_is_an_error_and_what_a_list_names_is_kept_for_its_row(here: Path) -> None:
    with pytest.raises(InputError, match=r"^no such file or folder: gone/x\.png$"):
        find.check_named([here / "gone/x.png"])

    assert find_images([here / "gone/x.png"]) == [Path("gone/x.png")]


def test_what_is_passed_over_is_counted_by_kind(here: Path) -> None:
    for name in ("a.png", "b.dng", "c.DNG", "Makefile", ".hidden", "x.jpg ", "sub/d.psd", "e.bak"):
        written(here / name)
    info = PngImagePlugin.PngInfo()
    info.add_text("Software", "anomaly-cli")
    Image.new("RGB", (8, 8)).save(here / "overlay.png", pnginfo=info)
    counted: Counter[str] = Counter()

    found = find_images([here], PathPatterns(exclude=("*.bak",)), counted)

    assert found == [Path("a.png")]
    assert counted == {".dng": 2, "no suffix": 1, "hidden": 1, "'.jpg '": 1, ".psd": 1, "own output": 1}
    assert find_images([here / "overlay.png"]) == [Path("overlay.png")]


def test_a_folder_named_like_an_image_is_a_folder(here: Path) -> None:
    written(here / "x.png/y.png")

    assert find_images([here]) == [Path("x.png/y.png")]


def test_link_loops_end_and_a_folder_reached_twice_is_listed_without_links(here: Path) -> None:
    written(here / "b/x.png")
    (here / "a").symlink_to("b")
    (here / "b/loop").symlink_to(here.absolute())

    assert find_images([here]) == [Path("b/x.png")]


def test_linked_folders_and_files_are_followed(here: Path) -> None:
    written(here / "data/x.png")
    (here / "in").mkdir()
    (here / "in/folder").symlink_to("../data")
    (here / "in/file.png").symlink_to("../data/x.png")

    assert find_images([here / "in"]) == [Path("in/file.png"), Path("in/folder/x.png")]


@pytest.mark.parametrize("pattern", ["open/locked/**", "open/locked/", "**/locked/", "*/lock*/**"])
def test_an_excluded_folder_is_not_opened(here: Path, monkeypatch: pytest.MonkeyPatch, pattern: str) -> None:
    written(here / "open/locked/x.png")
    written(here / "open/y.png")
    opened: list[str] = []
    scandir = os.scandir

    def noted(folder: str) -> Any:
        opened.append(folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", noted)

    assert find_images([here], PathPatterns(exclude=(pattern,))) == [Path("open/y.png")]
    assert not [folder for folder in opened if folder.endswith("locked")]


def test_a_folder_that_cannot_be_listed_is_kept_for_its_row(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(here / "open/locked/x.png")
    scandir = os.scandir

    def guarded(folder: str) -> Any:
        if folder.endswith("locked"):
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", guarded)

    assert find_images([here]) == [Path("open/locked")]


def test_a_link_that_cannot_be_followed_is_no_folder() -> None:
    class Refused:
        def is_dir(self) -> bool:
            raise PermissionError(13, "Permission denied")

    entry: Any = Refused()

    assert not find._leads_to_folder(entry)


def test_names_of_any_bytes_survive_and_are_in_byte_order(here: Path) -> None:
    names = [b"a\nb.png", b"a\xffb.png", b"\xc3\xa9.png", b"Z.png", b"a b.png"]
    for name in names:
        saved(Path(os.fsdecode(name)), noise())

    paths = find_images([here])

    assert [os.fsencode(path) for path in paths] == sorted(names)
    assert all(load_image(path, 64).height == 40 for path in paths)
