"""`anomaly report`: one HTML page to review a table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from anomaly_cli.commands import console
from anomaly_cli.commands.console import plural, print_stderr
from anomaly_cli.commands.options import Device, MinArea, ModelFile, NewRoi, Quiet, RegionThreshold
from anomaly_cli.config import DEFAULT_REGIONS, RegionRule

if TYPE_CHECKING:
    from anomaly_cli.review.report_page import PageReport


STDOUT = Path("-")
TOP = 2000  # pictures: about 20 MB, which every browser opens at once


def report(
    table: Annotated[Path, typer.Argument(metavar="TABLE", help="Table of `score` or `audit`; - for stdin.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="Page to write.")] = Path("report.html"),
    model: ModelFile = Path("anomaly.safetensors"),
    top: Annotated[
        int, typer.Option(metavar="N", min=0, help="Pictures for the N most anomalous; the others are listed without.")
    ] = TOP,
    region_threshold: RegionThreshold = DEFAULT_REGIONS.threshold,
    min_area: MinArea = DEFAULT_REGIONS.min_area,
    roi: NewRoi = None,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Make one HTML page to review a table image by image and export the labels: no network needed."""
    region_rule = RegionRule(threshold=region_threshold, min_area=min_area)
    from anomaly_cli.review.report_page import write_report

    with console.progress(quiet) as progress:
        written = write_report(
            table, model, out, top=top, region_rule=region_rule, roi=roi, device=device, progress=progress
        )
    if not quiet:
        summarise_page(written, out)


def summarise_page(report: PageReport, out: Path) -> None:
    """Print what the page shows, what it leaves out and how large it is."""
    gone = len(report.missing)
    if gone:
        print_stderr(
            f"warning: {plural(gone, 'image')} of the table cannot be read any more, "
            f"shown as missing, first {report.missing[0][0]}: {report.missing[0][1]}"
        )
    if report.changed:
        scores = "scores" if report.changed == 1 else "score"
        print_stderr(
            f"warning: {plural(report.changed, 'image')} {scores} differently now: "
            "is this the model that made the table, and are these the files?"
        )
    if not report.has_model:
        print_stderr("no p-values in this table: the page has no heat maps, no expected false alarms and no verdict")
    without = f", {report.left_out} more listed without (--top)" if report.left_out else ""
    pictures = plural(report.pictured, "picture")
    print_stderr(f"{plural(report.files, 'file')}: {pictures}{without}; {report.unreadable} unreadable")
    print_stderr(f"page: {out}, {report.size / 1e6:.1f} MB")
