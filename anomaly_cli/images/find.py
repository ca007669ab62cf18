"""Find image files in folders: sorted, without repeats, hidden files left out."""

from __future__ import annotations

import heapq
import os
from collections.abc import Sequence
from pathlib import Path

from anomaly_cli.errors import InputError
from anomaly_cli.images.patterns import EVERY_FILE, PathPatterns
from anomaly_cli.paths import RemotePath

IMAGE_SUFFIXES = frozenset((
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".bmp", ".dib", ".gif", ".tif", ".tiff",
    ".webp", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".tga", ".pcx", ".qoi", ".jp2", ".j2k", ".j2c", ".jpc",
    ".jpf", ".jpx", ".avif", ".avifs", ".heic", ".heif", ".hif",
))  # fmt: skip


def find_images(inputs: Sequence[Path], patterns: PathPatterns = EVERY_FILE) -> list[Path]:
    """List the images below folders, and every file that is named.

    In folders only names with an image suffix count that the patterns match, and names that start with a dot do
    not. Links are followed; a folder reached twice is listed once, by a path without links where there is one.

    Returns:
        Unresolved paths, each once, in the byte order of their names.

    Raises:
        InputError: a named path does not exist, or a folder cannot be listed (passing over it would lose
            files).
    """

    def is_wanted(below: str) -> bool:
        return below[below.rfind(".") :].lower() in IMAGE_SUFFIXES and patterns.match(below)

    found: set[Path] = set()
    folders: list[tuple[bool, str, str]] = []  # heap of (is a link, path, its part below the input): links last
    for path in inputs:
        if isinstance(path, RemotePath):
            found.update(path.find(is_wanted))
        elif _is_folder(path):
            heapq.heappush(folders, (False, str(path), ""))
        else:
            found.add(path)
    visited: set[Path] = set()
    while folders:
        _, folder, below = heapq.heappop(folders)
        real = Path(folder).resolve()
        if real in visited:
            continue
        visited.add(real)
        for entry in _visible_entries(folder):
            if _leads_to_folder(entry):
                heapq.heappush(folders, (entry.is_symlink(), entry.path, f"{below}{entry.name}/"))
            elif is_wanted(below + entry.name):
                found.add(Path(entry.path))
    return sorted(found, key=os.fsencode)


def _is_folder(path: Path) -> bool:
    try:
        if path.is_dir():
            return True
        missing = not path.exists() and not path.is_symlink()
    except OSError:  # for example inside a folder that may not be entered: `load_image` will say so
        return False
    if missing:
        raise InputError(f"no such file or folder: {path}")
    return False


def _visible_entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise InputError(f"cannot list folder: {Path(folder)}") from error


def _leads_to_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or into a folder that may not be entered
        return False


def collect(inputs: Sequence[Path], patterns: PathPatterns = EVERY_FILE) -> list[Path]:
    """List the images of the inputs; of those found in folders only the ones that the patterns match.

    Raises:
        InputError: there is none, or an input does not exist.
    """
    paths = find_images(inputs, patterns)
    if not paths:
        matched = "" if patterns == EVERY_FILE else " that --include and --exclude let pass"
        raise InputError(f"no image found in {', '.join(map(os.fspath, inputs))}{matched}")
    return paths
