"""Output files, written whole under a temporary name and one run at a time; locks, and what identifies content."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

from anomaly_cli.errors import OutputError

try:
    import fcntl
except ImportError:  # Windows, where a file that another run has open cannot be renamed: an error, not a corrupt file
    fcntl = None  # type: ignore[assignment]

# Some network and cluster file systems have no locks: there two runs that write one file at once may corrupt it.
NO_LOCKS = frozenset((errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK))


@contextmanager
def open_partial(target: Path) -> Iterator[BinaryIO]:
    """Open `<target>.partial`, which takes the name of the target at the end; after a failure it is removed.

    The name is always the same, so that a killed run leaves one file at most, which the next run reuses. Waits while
    another run writes there.

    Raises:
        OSError: the file cannot be written.
    """
    partial = target.with_name(target.name + ".partial")
    with _locked(partial, wait=True) as file:
        try:
            file.truncate()
            yield file
            file.flush()
            os.close(os.dup(file.fileno()))  # a network file system reports a full disk when a file is closed
            _close_on_windows(file)
            partial.replace(target)
        except BaseException:
            _close_on_windows(file)
            partial.unlink(missing_ok=True)
            raise


def _close_on_windows(file: BinaryIO) -> None:
    """Close it on Windows, which renames and removes closed files only; elsewhere the lock is held until then."""
    if os.name == "nt":
        file.close()


@contextmanager
def _locked(path: Path, *, wait: bool) -> Iterator[BinaryIO]:
    """Open a file, made if need be, for this process alone.

    Raises:
        BlockingIOError: another process has it open, and `wait` is false.
        OSError: it cannot be opened.
    """
    while True:
        # Not opened with mode "wb", which would empty what another run is writing.
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666), "wb") as file:
            if fcntl is not None:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
                except OSError as error:
                    if error.errno not in NO_LOCKS:
                        raise
            if _is_still_at(path, file):
                yield file
                return


def _is_still_at(path: Path, file: BinaryIO) -> bool:
    """Whether an open file still has this name; another process may have renamed or removed it."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


@contextmanager
def locked(path: Path, option: str) -> Iterator[None]:
    """Keep a file, made if need be, for this process alone.

    Args:
        path: of the file.
        option: command-line option that chooses another place for it.

    Raises:
        OutputError: another run has it open, or it cannot be written.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(_locked(path, wait=False))
        except BlockingIOError as error:
            rule = f"wait for it or choose another {option}"
            raise OutputError(f"another run with --resume has {path} open; {rule}") from error
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror}") from error
        yield


Stamp = tuple[int, int, int, int]  # size, mtime_ns, ctime_ns, inode


def file_stamp(path: Path) -> Stamp | None:
    """Identify a file without reading it; None if it is not a regular file or cannot be examined."""
    try:
        status = path.stat()
    except OSError:
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def content_of(path: Path) -> str | None:
    """Hash the content of a file: SHA-256 in hexadecimal; None if it cannot be read."""
    if file_stamp(path) is None:  # opening a pipe would wait for its writer
        return None
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def check_writable(path: Path) -> None:
    """Refuse an output that cannot be written before the work is done, not after."""
    parent = path.parent
    try:
        if not parent.is_dir():
            raise OutputError(f"cannot write {path}: no such folder: {parent}")
        if path.is_dir():
            raise OutputError(f"cannot write {path}: it is a folder")
        target = Path(os.path.realpath(path))
        replaced = target.is_file() or not target.exists()  # pipes and devices are written as they are
        if replaced and not os.access(target.parent, os.W_OK):
            raise OutputError(f"cannot write {path}: permission denied")
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from error


def check_target(out: Path | None) -> None:
    """Refuse a file that cannot be written; None is stdout."""
    if out is None:
        return
    with os_errors_as_output_error(str(out)):
        replaced = out.is_dir() or not is_written_directly(out)
    if replaced:
        check_writable(out)


_STREAMS = ("/dev/std", "/dev/fd/", "/proc/")


@contextmanager
def atomic_output(path: Path) -> Iterator[BinaryIO]:
    """Open a file that takes its name only once complete; until then, or after a failure, the old one stays.

    Concurrent runs that write the same file are serialised by a lock; the last one wins. A link is followed, and the
    file it points to is replaced. Devices, pipes and open descriptors such as /dev/stdout are written directly:
    renaming would put a file in the place of the device.

    Args:
        path: file to write; its folder must exist.

    Yields:
        The file; do nothing but write while it is open, since any OSError is taken for one of this file.

    Raises:
        OutputError: the file cannot be written.
        BrokenPipeError: `path` is a pipe without a reader.
    """
    with os_errors_as_output_error(str(path)):
        if is_written_directly(path):
            with path.open("wb") as file:
                yield file
            return
        with open_partial(Path(os.path.realpath(path))) as file:
            yield file


def is_written_directly(path: Path) -> bool:
    """Whether a path is a device, pipe or open descriptor rather than a file to be replaced; /dev/shm holds files."""
    target = Path(os.path.realpath(path))
    return str(path.absolute()).startswith(_STREAMS) or (target.exists() and not target.is_file())


def write_to_stdout(content: bytes) -> None:
    """Write all of it to stdout.

    Raises:
        OutputError: that is not possible.
        BrokenPipeError: there is no reader any more.
    """
    with os_errors_as_output_error("stdout"):
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()


def write_bytes(content: bytes, path: Path | None) -> None:
    """Write a whole output: to a file as `atomic_output` does, to stdout where `path` is None.

    Raises:
        OutputError: it cannot be written.
        BrokenPipeError: there is no reader any more.
    """
    if path is None:
        write_to_stdout(content)
        return
    with atomic_output(path) as file:
        file.write(content)


@contextmanager
def os_errors_as_output_error(name: str) -> Iterator[None]:
    """Raise an OSError during the writing of `name` as an OutputError; a broken pipe stays a BrokenPipeError."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"cannot write {name}: {error.strerror or error}") from error
