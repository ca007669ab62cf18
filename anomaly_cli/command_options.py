"""Options and arguments that several commands share, and how their paths are gathered."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from anomaly_cli.errors import ConfigError, InputError

ModelFile = Annotated[
    Path,
    typer.Option("--model", "-m", envvar="ANOMALY_MODEL", metavar="FILE", help="Model file.", show_default=True),
]
Inputs = Annotated[
    list[Path] | None, typer.Argument(metavar="INPUT...", help="Folders (searched recursively) or files.")
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


def gather(inputs: list[Path] | None, files_from: str | None, null: bool, *, required: bool = True) -> list[Path]:
    """Join the paths of the command line with those of `--files-from`."""
    paths = list(inputs or [])
    if files_from is not None:
        paths += _listed(files_from, b"\0" if null else b"\n")
    elif null:
        raise ConfigError("-0 goes with --files-from")
    if required and not paths:
        if files_from is None:
            raise ConfigError("name a folder or file to read, or use --files-from")
        raise InputError(f"{'stdin' if files_from == '-' else files_from} lists no path")
    return paths


def _listed(source: str, separator: bytes) -> list[Path]:
    try:
        content = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {source}: {error.strerror}") from error
    return [Path(os.fsdecode(name)) for name in content.split(separator) if name]
