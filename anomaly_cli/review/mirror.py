"""Where the pictures of an image go: its path below the output folder; touches no file."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from anomaly_cli.errors import ConfigError
from anomaly_cli.outputs import Kind, Output, check_kind

LONGEST_NAME = 255 - len(".map.png.partial")  # bytes; file systems allow 255, suffixes included


@dataclass(frozen=True)
class Mirror:
    """How paths are mirrored below an output folder.

    Attributes:
        base: folder that absolute paths count from; None to count them from the current folder, by its parents.
    """

    base: Path | None = None

    @classmethod
    def of(cls, folders: Iterable[Path]) -> Mirror:
        """Choose the base: the folder that absolute inputs have in common, none if there is a relative one.

        Relative paths keep their place whatever else is given, so that beside them absolute ones keep all parts, too.

        Args:
            folders: those that the user named, and those of the files named; not what was found in them, so that a
                picture keeps its place when files are added.
        """
        base: str | None = None
        for folder in folders:
            if not folder.is_absolute():
                return cls(None)
            base = os.fspath(folder) if base is None else os.path.commonpath((base, folder))
        return cls(None if base is None else Path(base))

    def target(self, path: Path, out: Path) -> Path:
        """Map a path into the output folder, `__` for `..`, without the suffix of the output.

        A name that leaves no room for the suffixes of the outputs is cut; a digest keeps it unique.
        """
        inside = path
        if path.is_absolute():
            inside = Path(os.path.relpath(path, self.base or Path.cwd()))
        target = out.joinpath(*("__" if part == ".." else part for part in inside.parts))
        name = os.fsencode(target.name)
        if len(name) <= LONGEST_NAME:
            return target
        digest = hashlib.sha256(name).hexdigest()[:8]
        return target.with_name(f"{name[: LONGEST_NAME - 9].decode('utf-8', 'ignore')}~{digest}")

    def picture(self, path: Path, out: Path, suffix: str = ".png") -> Path:
        """Name the picture of an image."""
        target = self.target(path, out)
        return target.with_name(target.name + suffix)


def check_pictures(pictures: Iterable[tuple[str, Path]]) -> None:
    """Refuse pictures that would replace each other or a file of another kind.

    Args:
        pictures: option and file of each picture of a run.

    Raises:
        ConfigError: two are one file, or one would replace a file that the tool did not write.
    """
    seen: dict[bytes, str] = {}
    for option, path in pictures:
        other = seen.setdefault(os.fsencode(path), option)
        if other != option:
            raise ConfigError(f"{other} and {option} would both write {path}: name two folders")
        check_kind(Output(option, path, Kind.PICTURE))
