"""`anomaly info`: describe a model file."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from anomaly_cli.commands import console
from anomaly_cli.commands.console import plural
from anomaly_cli.commands.options import ModelArgument
from anomaly_cli.detector.scales import scale_title
from anomaly_cli.files import write_to_stdout


def describe_model(path: Path, header: dict[str, Any]) -> Iterator[str]:
    """Describe a model file in lines of text, one per property."""
    provenance, config, normals = header["provenance"], header["config"], header["normal_scores"]
    yield f"model         {path}, format {header['format']}"
    yield f"size          {path.stat().st_size / 1e6:.1f} MB, network included"
    yield f"trained       {provenance['created']}"
    known = f"{provenance['anomalies']} labelled anomalous"
    yield f"on            {plural(provenance['images'], 'normal image')}, {known}"
    outliers = plural(provenance["suspects"], "outlier")
    yield f"left out      {plural(provenance['unreadable'], 'unreadable file')}, {outliers}"
    yield f"training set  sha256 {provenance['training_set']}"
    yield f"settings      {', '.join(f'{name} {value}' for name, value in config.items())}"
    yield f"versions      {', '.join(f'{name} {value}' for name, value in provenance['versions'].items())}"
    for name, memory in header["memory"].items():
        yield f"{scale_title(name):<13} {plural(memory['prototypes'], 'prototype')} of {memory['channels']} channels"
    size = header["thumbnails"]
    yield f"thumbnails    {f'of every prototype, {size / 1e3:.0f} kB' if size else 'none'}"
    yield f"calibration   {plural(len(normals), 'held-out normal image')}, scores {normals[0]:.3f} to {normals[-1]:.3f}"
    yield f"p-values      no smaller than {1 / (len(normals) + 1):.2g}"


def info(model: ModelArgument = Path("anomaly.safetensors")) -> None:
    """Say what a model file was trained on, when, with which settings."""
    from anomaly_cli.scoring.score import info as read_info

    encoding = sys.stdout.encoding or "utf-8"
    lines = [console.escaped(line, encoding) + "\n" for line in describe_model(model, read_info(model))]
    write_to_stdout("".join(lines).encode(encoding))
