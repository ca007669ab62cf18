"""`anomaly export`: write a model as one ONNX file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from anomaly_cli.commands import console
from anomaly_cli.commands.options import ModelArgument, Quiet


def export(
    model: ModelArgument = Path("anomaly.safetensors"),
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="File to write; if not given MODEL with the suffix .onnx."),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Write a model for programs without torch: pixels in, image score and anomaly map out, 1 = limit of normal.

    The file takes any number of images of one size at a time: float RGB in [0, 1] as (N, 3, H, W). H and W are free,
    multiples of 32 (of 14 for patches of 14), as the aspect ratio wants: the file lists them, and what else a program
    must know (docs/export.md).
    Opset 18. Needs pip install 'anomaly-cli[onnx]'.
    """
    from anomaly_cli.detector.onnx_export import export as export_model

    report = export_model(model, out)
    if not quiet:
        side = report.image_size
        console.print_stderr(
            f"exported {report.out}: {report.size / 1e6:.1f} MB, for images of about {side} x {side} pixels"
        )
