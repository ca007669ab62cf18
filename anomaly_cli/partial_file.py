"""The temporary file that becomes an output once it is complete; runs that write the same output take turns."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

# Some network and cluster file systems have no locks: there two runs that write one file at one moment spoil it.
NO_LOCKS = frozenset((errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK))


@contextmanager
def open_partial(target: Path) -> Iterator[BinaryIO]:
    """Open `<target>.partial`, which takes the name of the target at the end; after a failure it is removed.

    The name is always the same, so that a killed run leaves one file at most, which the next run takes over. Waits
    while another run writes there.

    Raises:
        OSError: the file cannot be written.
    """
    partial = target.with_name(target.name + ".partial")
    with _locked(partial) as file:
        try:
            yield file
            file.flush()
            os.close(os.dup(file.fileno()))  # a network file system tells of a full disk when a file is closed
            _let_go(file)
            partial.replace(target)
        except BaseException:
            _let_go(file)
            partial.unlink(missing_ok=True)
            raise


@contextmanager
def _locked(path: Path) -> Iterator[BinaryIO]:
    while True:
        # Not opened with mode "wb", which would empty what another run is writing.
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666), "wb") as file:
            _wait_for(file)
            if is_still_at(path, file):
                file.truncate()
                yield file
                return
            # The run that held the lock has just finished and renamed this file: it is an output now.


def _let_go(file: BinaryIO) -> None:
    """Close it on Windows, which renames and removes closed files only; elsewhere the lock is held until then."""
    if os.name == "nt":
        file.close()


def _wait_for(file: BinaryIO) -> None:
    try:
        import fcntl
    except ImportError:  # Windows, where a file that another run has open cannot be renamed: an error, no spoiled file
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise


def is_still_at(path: Path, file: BinaryIO) -> bool:
    """Tell whether an open file still has this name, or another process has renamed or removed it."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
