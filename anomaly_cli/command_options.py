"""Options and arguments that several commands share, and how their paths are gathered."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from anomaly_cli.config import DetectorConfig, Effort
from anomaly_cli.errors import ConfigError, InputError
from anomaly_cli.path_patterns import PathPatterns
from anomaly_cli.remote import RemotePath, path_of, paths_of
from anomaly_cli.table import TableFormat

CHUNK_BYTES = 65536  # of a list of paths; one read gives what is there

ModelFile = Annotated[
    Path,
    typer.Option("--model", "-m", envvar="ANOMALY_MODEL", metavar="FILE", help="Model file.", show_default=True),
]
Inputs = Annotated[
    list[str] | None,
    typer.Argument(metavar="INPUT...", help="Folders (searched recursively) or files; also URLs."),
]
FilesFrom = Annotated[
    str | None,
    typer.Option("--files-from", metavar="FILE|-", help="Read more paths from a file, one a line."),
]
NulSeparated = Annotated[bool, typer.Option("--null", "-0", help="Paths of --files-from end with NUL, not newline.")]
Device = Annotated[
    str,
    typer.Option(envvar="ANOMALY_DEVICE", metavar="NAME", help="auto, cpu, cuda or cuda:N.", show_default=True),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Only errors on stderr.")]

Out = Annotated[Path, typer.Option("--out", "-o", metavar="FILE|-", help="Table to write; - for stdout.")]
Format = Annotated[
    TableFormat | None, typer.Option("--format", help="Instead of the one that the suffix of --out names.")
]
BackboneName = Annotated[
    str, typer.Option("--backbone", metavar="NAME", help="embedded, scratch, or a torchvision model such as resnet18.")
]
Weights = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Weights of a torchvision backbone, instead of a download.")
]
EffortLevel = Annotated[Effort, typer.Option("--effort", help="How long `scratch` learns its features.")]
ImageSize = Annotated[
    int, typer.Option(metavar="PIXELS", help="Pixels squared to shrink images to, aspect kept; small ones stay small.")
]
Prototypes = Annotated[int, typer.Option(metavar="N", help="Upper limit a scale.")]
Seed = Annotated[int, typer.Option(metavar="N", help="Same images, settings and seed give the same result.")]
Include = Annotated[
    list[str] | None,
    typer.Option(
        metavar="GLOB",
        help="Of the files found in folders take only these: '*.png' by name, 'cam1/**' by path below the folder; "
        "may be repeated.",
    ),
]
Exclude = Annotated[
    list[str] | None, typer.Option(metavar="GLOB", help="Of the files found in folders leave these out; as --include.")
]
DEFAULTS = DetectorConfig()


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


def gather(inputs: list[str] | None, files_from: str | None, null: bool, *, required: bool = True) -> list[Path]:
    """Join the paths of the command line with those of `--files-from`."""
    paths = paths_of(inputs)
    if files_from is not None:
        paths += _listed(files_from, b"\0" if null else b"\n")
    elif null:
        raise ConfigError("-0 goes with --files-from")
    if required and not paths:
        if files_from is None:
            raise ConfigError("name a folder or file to read, or use --files-from")
        raise InputError(f"{'stdin' if files_from == '-' else files_from} lists no path")
    return paths


def arriving(source: str, null: bool) -> Iterator[Path]:
    """Read the paths of `--files-from` one by one, each as soon as it is there.

    Raises:
        InputError: the file cannot be opened, at once, or read.
    """
    # Unbuffered: `sys.stdin` would wait for more, and a thread that waits in it keeps the interpreter from ending.
    with _os_errors_as_input_error(source):
        file = io.FileIO(sys.stdin.fileno(), closefd=False) if source == "-" else io.FileIO(source)
    return _arriving(file, source, b"\0" if null else b"\n")


def _arriving(file: io.FileIO, source: str, separator: bytes) -> Iterator[Path]:
    rest = b""
    with file, _os_errors_as_input_error(source):
        while chunk := file.read(CHUNK_BYTES):
            *names, rest = (rest + chunk).split(separator)
            yield from (path_of(os.fsdecode(name)) for name in names if name)
    if rest:
        yield path_of(os.fsdecode(rest))


@contextmanager
def _os_errors_as_input_error(source: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot read {'stdin' if source == '-' else source}: {error.strerror}") from error


def _listed(source: str, separator: bytes) -> list[Path]:
    try:
        content = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {source}: {error.strerror}") from error
    return [path_of(os.fsdecode(name)) for name in content.split(separator) if name]
