"""`anomaly list`: print paths of a table; opens no image and loads no model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from anomaly_cli.commands import console
from anomaly_cli.files import write_to_stdout
from anomaly_cli.tables.formats import TableFormat
from anomaly_cli.tables.selection import Selection, Selector, select_paths


def list_paths(
    table: Annotated[Path, typer.Argument(metavar="TABLE", help="Table of `score`; - for stdin.")],
    flagged: Annotated[bool, typer.Option("--flagged", help="Only the flagged.")] = False,
    above: Annotated[
        float | None,
        typer.Option(metavar="SCORE", help="Only scores from this one up, as --threshold; 1 = limit of normal."),
    ] = None,
    top: Annotated[int | None, typer.Option(metavar="N", min=1, help="Only the N most anomalous.")] = None,
    unreadable: Annotated[
        bool, typer.Option("--unreadable", help="Only the files that could not be read, by name.")
    ] = False,
    null: Annotated[
        bool, typer.Option("--null", "-0", help="End each path with NUL, not newline: for xargs -0.")
    ] = False,
    format: Annotated[
        TableFormat | None, typer.Option("--format", help="Instead of the one that the content shows.")
    ] = None,
) -> None:
    """Print only the paths of a table, most anomalous first: all with a score, or those that one option selects."""
    selection = Selection.choose(
        {Selector.FLAGGED: flagged, Selector.ABOVE: above, Selector.TOP: top, Selector.UNREADABLE: unreadable}
    )
    paths = select_paths(table, format, selection)
    if not null and (broken := sum("\n" in path for path in paths)):
        holds = "path holds" if broken == 1 else "paths hold"
        console.print_stderr(f"warning: {broken} {holds} a line break; use -0 with xargs -0")
    end = b"\0" if null else b"\n"
    write_to_stdout(b"".join(os.fsencode(path) + end for path in paths))
