"""Options and arguments that several commands share, and how their paths are gathered."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from anomaly_cli.config import DetectorConfig, Effort
from anomaly_cli.tables.formats import TableFormat

ModelFile = Annotated[
    Path,
    typer.Option("--model", "-m", envvar="ANOMALY_MODEL", metavar="FILE", help="Model file.", show_default=True),
]

ModelArgument = Annotated[
    Path, typer.Argument(metavar="[MODEL]", envvar="ANOMALY_MODEL", help="Model file.", show_default=True)
]

Inputs = Annotated[
    list[str] | None,
    typer.Argument(metavar="INPUT...", help="Folders (searched recursively) or files; also URLs."),
]

FilesFrom = Annotated[
    str | None,
    typer.Option("--files-from", metavar="FILE|-", help="Read more paths from a file, one per line."),
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
    str,
    typer.Option(
        "--backbone",
        metavar="NAME",
        help="embedded, scratch, a torchvision model such as resnet18, or one of timm such as dinov2 "
        "(pip install 'anomaly-cli[backbones]').",
    ),
]

Weights = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Weights of a backbone of torchvision or timm, instead of a download."),
]

EffortLevel = Annotated[Effort, typer.Option("--effort", help="How long `scratch` learns its features.")]

ImageSize = Annotated[
    int,
    typer.Option(
        metavar="PIXELS",
        help="Pixels squared to shrink images to, aspect kept; files below 128 are enlarged to 128, but at most to "
        "twice their side, with scratch those below 64 to 64. A multiple of 32; for a transformer rounded to its "
        "patches.",
    ),
]

Prototypes = Annotated[int, typer.Option(metavar="N", help="Upper limit per scale.")]

Seed = Annotated[int, typer.Option(metavar="N", help="Same images, settings and seed give the same result.")]

RegionThreshold = Annotated[
    float,
    typer.Option(
        metavar="VALUE", help="Map values from this one up belong to regions; 1 = limit of normal.", show_default=True
    ),
]

MinArea = Annotated[
    int,
    typer.Option(
        metavar="PIXELS",
        help="Leave out smaller regions, in pixels of the file. Scores and flags stay.",
        show_default="none left out",
    ),
]

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

Roi = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE|DIR",
        help="Inspect only what is white in a mask of the size or aspect of the images; DIR: one mask a file name.",
    ),
]


NewRoi = Annotated[
    Path | None,
    typer.Option(
        "--roi",
        metavar="FILE|DIR",
        help="Region of interest of these images, where it is not that of the model; DIR: one mask a file name.",
    ),
]


DEFAULTS = DetectorConfig()
