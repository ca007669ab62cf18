"""Find image files in folders: sorted, without repeats, hidden files left out."""

from __future__ import annotations

import heapq
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from anomaly_cli.errors import InputError
from anomaly_cli.images.own_output import is_own_output
from anomaly_cli.images.patterns import EVERY_FILE, PathPatterns
from anomaly_cli.paths import RemotePath

IMAGE_SUFFIXES = frozenset((
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".bmp", ".dib", ".gif", ".tif", ".tiff",
    ".webp", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".tga", ".pcx", ".qoi", ".jp2", ".j2k", ".j2c", ".jpc",
    ".jpf", ".jpx", ".avif", ".avifs", ".heic", ".heif", ".hif",
))  # fmt: skip


def check_named(paths: Sequence[Path]) -> None:
    """Refuse what the user typed and is not there; what a list or a folder names becomes an unreadable row instead.

    Raises:
        InputError: a local file or folder does not exist, or a folder cannot be listed.
    """
    for path in paths:
        if isinstance(path, RemotePath):
            continue
        if _is_missing(path):
            raise InputError(f"no such file or folder: {path}")
        if _is_folder(path) and not os.access(path, os.R_OK | os.X_OK):
            raise InputError(f"cannot list folder: {path}")


def find_images(
    inputs: Sequence[Path], patterns: PathPatterns = EVERY_FILE, passed_over: Counter[str] | None = None
) -> list[Path]:
    """List the images below folders, and every file that is named, whether it is there or not.

    In folders only names with an image suffix count that the patterns match. Names that start with a dot and pictures
    that this tool wrote are passed over. Links are followed; a folder reached twice is listed once, by a path without
    links where there is one. Excluded folders are not opened; one that cannot be listed is returned itself, so that it
    becomes an unreadable row.

    Args:
        inputs: folders and files.
        patterns: of the files in folders.
        passed_over: counts by kind what lies in folders and is passed over, though no pattern excludes it.

    Returns:
        Unresolved paths, each once, in the byte order of their names.

    Raises:
        InputError: a remote folder does not exist or cannot be listed.
    """
    passed_over = Counter() if passed_over is None else passed_over

    def is_wanted(below: str) -> bool:
        return below[below.rfind(".") :].lower() in IMAGE_SUFFIXES and patterns.match(below)

    found: set[Path] = set()
    folders: list[Path] = []
    for path in inputs:
        if isinstance(path, RemotePath):
            found.update(path.find(is_wanted))
        else:
            (folders.append if _is_folder(path) else found.add)(path)
    for entry, below in _walk(folders, patterns, found):
        if entry.name.startswith("."):
            passed_over["hidden"] += 1
        elif not is_wanted(below):
            if patterns.match(below):
                passed_over[kind_of(entry.name)] += 1
        elif is_own_output(Path(entry.path)):
            passed_over["own output"] += 1
        else:
            found.add(Path(entry.path))
    return sorted(found, key=os.fsencode)


def _walk(tops: Sequence[Path], patterns: PathPatterns, unlisted: set[Path]) -> Iterator[tuple[os.DirEntry[str], str]]:
    """List the files below folders, and what is hidden, each with its path below; folders without access are added."""
    folders = [(False, str(top), "") for top in tops]  # heap of (is a link, path, its part below the top): links last
    heapq.heapify(folders)
    visited: set[Path] = set()
    while folders:
        _, folder, below = heapq.heappop(folders)
        real = Path(folder).resolve()
        if real in visited:
            continue
        visited.add(real)
        try:
            with os.scandir(folder) as scanned:
                entries = list(scanned)
        except OSError:
            unlisted.add(Path(folder))
            continue
        for entry in entries:
            name = below + entry.name
            if entry.name.startswith(".") or not _leads_to_folder(entry):
                yield entry, name
            elif not patterns.excludes_folder(name):
                heapq.heappush(folders, (entry.is_symlink(), entry.path, f"{name}/"))


def by_count(passed_over: Counter[str]) -> dict[str, int]:
    """Order kinds by falling count, then by name."""
    return dict(sorted(passed_over.items(), key=lambda item: (-item[1], item[0])))


def kind_of(name: str) -> str:
    """Name the kind of a file by its suffix, in quotes where that holds blanks."""
    suffix = Path(name).suffix.lower()
    if not suffix.strip("."):
        return "no suffix"
    return f"'{suffix}'" if " " in suffix else suffix


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # for example inside a folder that may not be entered: `load_image` will say so
        return False


def _is_missing(path: Path) -> bool:
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return True
    except OSError:  # in a folder that may not be entered
        return False
    return False


def _leads_to_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or into a folder that may not be entered
        return False


def collect(
    inputs: Sequence[Path], patterns: PathPatterns = EVERY_FILE, passed_over: Counter[str] | None = None
) -> list[Path]:
    """List the images of the inputs as `find_images` does, at least one.

    Raises:
        InputError: there is none, or a remote folder cannot be listed.
    """
    paths = find_images(inputs, patterns, passed_over)
    if not paths:
        matched = "" if patterns == EVERY_FILE else " that --include and --exclude let pass"
        raise InputError(f"no image found in {', '.join(map(os.fspath, inputs))}{matched}")
    return paths
