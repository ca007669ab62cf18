"""`anomaly prototypes`: a sheet of the normal patches that a model compares with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from anomaly_cli.commands import console
from anomaly_cli.commands.options import ModelFile, Quiet

SHOWN_PROTOTYPES = 200  # per scale: ten rows
MAX_SHOWN_PROTOTYPES = 5000  # ordering them compares all pairs


def prototypes(
    model: ModelFile = Path("anomaly.safetensors"),
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="Picture to write, a PNG.")] = Path(
        "prototypes.png"
    ),
    top: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=1,
            max=MAX_SHOWN_PROTOTYPES,
            help="Show the N of each scale that differ most from each other.",
        ),
    ] = SHOWN_PROTOTYPES,
    quiet: Quiet = False,
) -> None:
    """Draw what a model learned: the normal patches that it compares images with, scale by scale."""
    from anomaly_cli.review.prototype_sheet import write_prototypes

    drawn = write_prototypes(model, out, top)
    if not quiet:
        console.print_stderr(f"prototypes drawn: {console.by_scale(drawn)}")
        console.print_stderr(f"picture: {out}")
