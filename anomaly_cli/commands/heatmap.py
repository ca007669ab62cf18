"""`anomaly heatmap`: draw where images deviate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from anomaly_cli.commands import console
from anomaly_cli.commands.console import plural, print_stderr, say_passed_over, warn_unreadable
from anomaly_cli.commands.inputs import patterns_of, read_inputs
from anomaly_cli.commands.options import (
    Device,
    Exclude,
    FilesFrom,
    Include,
    Inputs,
    MinArea,
    ModelFile,
    NewRoi,
    NulSeparated,
    Quiet,
    RegionThreshold,
)
from anomaly_cli.config import DEFAULT_REGIONS, RawMap, RegionRule
from anomaly_cli.errors import ConfigError
from anomaly_cli.tables.reader import STDIN

if TYPE_CHECKING:
    from anomaly_cli.review.heatmaps import HeatmapReport


def summarise_heatmaps(report: HeatmapReport, out: Path) -> None:
    """Print how many overlays were drawn and where."""
    warn_unreadable(report.unreadable)
    if report.shortened:
        count, first = plural(len(report.shortened), "overlay"), report.shortened[0]
        print_stderr(f"warning: {count} under a shortened name, the image's being too long, first {first}")
    say_passed_over(report.passed_over)
    print_stderr(f"{plural(len(report.written), 'overlay')} in {out}")


def heatmap(
    inputs: Inputs = None,
    model: ModelFile = Path("anomaly.safetensors"),
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder for the pictures.")] = Path(
        "heatmaps"
    ),
    top: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Only the N most anomalous; all if not given.")
    ] = None,
    scores: Annotated[
        Path | None,
        typer.Option(metavar="TABLE", help="Table of `score`, - for stdin: draw what it lists, score nothing again."),
    ] = None,
    raw: Annotated[
        RawMap | None, typer.Option(help="Also save the map itself: png16 (1000 = limit of normal) or npy.")
    ] = None,
    side_by_side: Annotated[
        bool, typer.Option("--side-by-side", help="Put the image itself to the left of its overlay.")
    ] = False,
    masks: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Also save the regions of each image as a PNG of its size: white on black."),
    ] = None,
    region_threshold: RegionThreshold = DEFAULT_REGIONS.threshold,
    min_area: MinArea = DEFAULT_REGIONS.min_area,
    files_from: FilesFrom = None,
    null: NulSeparated = False,
    include: Include = None,
    exclude: Exclude = None,
    roi: NewRoi = None,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Draw where images deviate: one overlay per file, one colour scale for all."""
    if scores == STDIN and files_from == "-":
        raise ConfigError("--scores - and --files-from - cannot both come from stdin")
    paths = read_inputs(inputs, files_from, null, required=scores is None)
    region_rule = RegionRule(threshold=region_threshold, min_area=min_area)
    if masks is None and region_rule != DEFAULT_REGIONS:
        raise ConfigError("--region-threshold and --min-area choose the regions of --masks; overlays outline all")
    from anomaly_cli.review import heatmaps

    patterns = patterns_of(include, exclude)
    drawn = heatmaps.Drawn(out, raw, masks, region_rule, side_by_side)
    with console.progress(quiet) as progress:
        report = heatmaps.heatmap(
            paths, model, drawn, top=top, scores=scores, patterns=patterns, roi=roi, device=device, progress=progress
        )
    if not quiet:
        summarise_heatmaps(report, out)
