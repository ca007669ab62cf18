"""The inputs of a command: folders, files, URLs and lists of paths, read at once or one by one."""

from __future__ import annotations

import codecs
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

from anomaly_cli.errors import ConfigError, InputError
from anomaly_cli.images.find import check_named
from anomaly_cli.images.patterns import PathPatterns
from anomaly_cli.paths import RemotePath, path_of, paths_of

CHUNK_BYTES = 65536  # of a list of paths; one read returns what is there


def patterns_of(include: list[str] | None, exclude: list[str] | None) -> PathPatterns:
    """Join the patterns of the command line."""
    return PathPatterns(tuple(include or ()), tuple(exclude or ()))


def check_local(paths: list[Path]) -> None:
    """Refuse URLs with `--resume`, which must be able to tell whether a file is still the same.

    Raises:
        ConfigError: there is one.
    """
    if remote := next((path for path in paths if isinstance(path, RemotePath)), None):
        raise ConfigError(f"--resume goes with files of this machine, not with {remote}")


def read_inputs(inputs: list[str] | None, files_from: str | None, null: bool, *, required: bool = True) -> list[Path]:
    """Join the paths of the command line with those of `--files-from`."""
    paths = paths_of(inputs)
    check_named(paths)
    if files_from is not None:
        paths += _read_list(files_from, null)
    elif null:
        raise ConfigError("-0 goes with --files-from")
    if required and not paths:
        if files_from is None:
            raise ConfigError("name a folder or file to read, or use --files-from")
        raise InputError(f"{'stdin' if files_from == '-' else files_from} lists no path")
    return paths


def iter_paths(source: str, null: bool) -> Iterator[Path]:
    """Read the paths of `--files-from` one by one, each as soon as it is there.

    Raises:
        InputError: the file cannot be opened, at once, or read.
    """
    # Unbuffered: `sys.stdin` would wait for more, and a thread that waits in it keeps the interpreter from ending.
    with _os_errors_as_input_error(source):
        file = io.FileIO(sys.stdin.fileno(), closefd=False) if source == "-" else io.FileIO(source)
    return _iter_paths(file, source, null)


def _iter_paths(file: io.FileIO, source: str, null: bool) -> Iterator[Path]:
    with file, _os_errors_as_input_error(source):
        yield from _paths_in(iter(lambda: file.read(CHUNK_BYTES), b""), null)


def _paths_in(chunks: Iterator[bytes], null: bool) -> Iterator[Path]:
    """Split a list into paths, each as soon as its end is there; lists of Windows may be UTF-16 and end in CRLF."""
    separator = b"\0" if null else b"\n"
    first = next(chunks, b"")
    if first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        decoder = codecs.getincrementaldecoder("utf-16")(errors="replace")
        encoded = chain([first], chunks)
        first, chunks = b"", (decoder.decode(chunk).encode("utf-8", "surrogatepass") for chunk in encoded)
    rest = b""
    for chunk in chain([first.removeprefix(codecs.BOM_UTF8)], chunks, [separator]):
        *names, rest = (rest + chunk).split(separator)
        yield from (path_of(os.fsdecode(name if null else _without_return(name))) for name in names if name)


def _without_return(name: bytes) -> bytes:
    """Take the carriage return of a CRLF from a line, unless a file has it in its name."""
    return name.removesuffix(b"\r") if name.endswith(b"\r") and not os.path.lexists(name) else name


@contextmanager
def _os_errors_as_input_error(source: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot read {'stdin' if source == '-' else source}: {error.strerror}") from error


def _read_list(source: str, null: bool) -> list[Path]:
    with _os_errors_as_input_error(source):
        content = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
    return list(_paths_in(iter([content]), null))
