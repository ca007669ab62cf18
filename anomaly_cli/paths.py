"""Paths that may be URLs, read through fsspec, which is imported only when there is one."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterable
from pathlib import Path, PosixPath
from typing import Any

from anomaly_cli.errors import InputError

# A scheme of one letter would be a drive. `file` is left out: that is what paths without a scheme are for.
_URL = re.compile(r"(?!file:)[a-z][a-z0-9+.-]+://")
_SCHEME = re.compile(r"(^|::)([a-z][a-z0-9+.-]+):(?:/+|$)")  # as a path keeps it, with one slash


class RemotePath(PosixPath):
    """A URL as fsspec has them, such as `s3://bucket/a.png` or `zip://a.png::archive.zip`.

    Its text is the URL; names, suffixes and comparison are those of a path. Only what is defined here reads anything.
    """

    __slots__ = ()

    def __str__(self) -> str:
        return _SCHEME.sub(r"\1\2://", super().__str__())

    def find(self, is_wanted: Callable[[str], bool]) -> list[RemotePath]:
        """List the wanted files below, or this one if it is a file; names that start with a dot are hidden.

        Args:
            is_wanted: decides by the path below this folder. If it accepts the name of this path itself, the path is
                taken for a file and not looked up; reading it will show whether it exists.

        Raises:
            InputError: nothing is there, it cannot be listed, or the library for its protocol is missing.
        """
        system, root = self._opened()
        first, chain, archive = str(self).partition("::")
        if is_wanted(first.partition("?")[0].rpartition("/")[2]):
            return [self]
        try:
            names = system.find(root)
            if not names and system.isfile(root):
                names = [root]
            if not names and not system.exists(root):
                raise FileNotFoundError
        except FileNotFoundError as error:
            raise InputError(f"no such file or folder: {self}") from error
        except Exception as error:  # each file system has its own
            raise InputError(f"cannot list {self}: {_first_line(error)}") from error
        if names == [root]:
            return [self]
        inside = [name.removeprefix(root).lstrip("/") for name in names]
        visible = [below for below in inside if "/." not in f"/{below}" and is_wanted(below)]
        return [RemotePath(f"{first}/{below}{chain}{archive}") for below in visible]

    def read_bytes(self) -> bytes:
        """Read the whole file.

        Raises:
            OSError: it cannot be read, with the message of the file system.
        """
        try:
            system, root = self._opened()
            content: bytes = system.cat_file(root)
        except OSError:
            raise
        except Exception as error:  # each file system has its own
            raise OSError(errno.EIO, _first_line(error)) from error
        return content

    def _opened(self) -> tuple[Any, str]:
        try:
            from fsspec.core import url_to_fs
        except ImportError as error:
            raise InputError(f"cannot read {self}: install fsspec, or anomaly-cli with the extra `remote`") from error
        try:
            system, root = url_to_fs(str(self))
            return system, root
        except Exception as error:  # a missing library or protocol, no archive, no network
            raise InputError(f"cannot open {self}: {_first_line(error)}") from error


def path_of(name: str) -> Path:
    """Make a path of a name that may be a URL."""
    return RemotePath(name) if _URL.match(name) else Path(name)


def paths_of(names: Iterable[str] | None) -> list[Path]:
    """Make paths of the names of the command line, where there are any."""
    return [path_of(name) for name in names or ()]


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
