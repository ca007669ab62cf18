"""Glob patterns that choose among the files found in a folder; of the file system it knows nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from anomaly_cli.errors import ConfigError


@dataclass(frozen=True)
class PathPatterns:
    """Which files below a folder count: those that some `include` matches (any, if there is none), less `exclude`.

    A pattern without a slash is matched against the name of the file alone, one with a slash against the whole path
    below the folder. `*`, `?` and `[a-z]` stay within one name, `**` stands for any number of folders, also none.
    A slash in front only ties a pattern to the folder itself, one at the end means all that is below.
    Upper and lower case differ. Any character may be part of a name, also bytes that are not UTF-8.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what matches nothing.

        Raises:
            ConfigError: a pattern is empty.
        """
        for option, patterns in (("include", self.include), ("exclude", self.exclude)):
            if not all(pattern.strip("/") for pattern in patterns):
                raise ConfigError(f"--{option} needs a pattern such as '*.png'")

    def match(self, path: str) -> bool:
        """Tell whether a file counts, from its path below the folder."""
        chosen = not self.include or any(_matches(path, pattern) for pattern in self.include)
        return chosen and not any(_matches(path, pattern) for pattern in self.exclude)

    def excludes_folder(self, path: str) -> bool:
        """Tell whether everything in a folder is excluded, from its path below the one that is searched."""
        whole = [pattern.rstrip("*").strip("/") for pattern in self.exclude if pattern.endswith(("/", "/**"))]
        return any(_matches_names(path.split("/"), pattern.split("/")) for pattern in whole)


EVERY_FILE = PathPatterns()


def _matches(path: str, pattern: str) -> bool:
    names = path.split("/")
    if "/" not in pattern:
        return fnmatchcase(names[-1], pattern)
    if pattern.endswith("/"):
        pattern += "**"
    return _matches_names(names, pattern.removeprefix("/").split("/"))


def _matches_names(names: Sequence[str], patterns: Sequence[str]) -> bool:
    if not patterns or not names:
        return not patterns and not names
    if patterns[0] != "**":
        return fnmatchcase(names[0], patterns[0]) and _matches_names(names[1:], patterns[1:])
    # At the end it stands for everything below, in front of more for any number of folders.
    return len(patterns) == 1 or any(_matches_names(names[skip:], patterns[1:]) for skip in range(len(names)))
