"""Functions for notebooks: `train`, `score`, `regions` and `heatmap` on image files; never prints."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from anomaly_cli.config import DEFAULT_RULE, DetectorConfig, Effort, RegionRule
from anomaly_cli.detector.checkpoint import Model, load_model
from anomaly_cli.detector.devices import choose_device
from anomaly_cli.errors import ConfigError, InputError, UnreadableImageError
from anomaly_cli.images import find
from anomaly_cli.images.decode import read_pixels
from anomaly_cli.paths import path_of
from anomaly_cli.review.overlay import draw_overlay
from anomaly_cli.review.roi_border import draw_region
from anomaly_cli.scoring import score as scoring
from anomaly_cli.scoring.measure import Scorer, choose_roi
from anomaly_cli.scoring.rows import flag_rows, make_row
from anomaly_cli.tables.region_table import RegionTable
from anomaly_cli.tables.writer import Table
from anomaly_cli.training import train as training

if TYPE_CHECKING:
    import pandas as pd


Name = str | os.PathLike[str]

Names = Name | Iterable[Name]


def train(
    normal: Names,
    *,
    model: Name | None = None,
    anomalies: Names = (),
    roi: Name | None = None,
    device: str = "auto",
    **settings: Any,
) -> Model:
    """Learn what normal looks like, as `anomaly train` does.

    Args:
        normal: folder or files of normal images, one or several.
        model: file to save the model to; if left out, the model stays in memory only.
        anomalies: labelled anomalous images, likewise.
        roi: mask of what is inspected, white on black, or a folder with one a file name.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        settings: fields of `DetectorConfig`: `backbone`, `image_size`, `prototypes`, `effort`, `seed`,
            `intensity_window`.

    Raises:
        AnomalyError: what the command would say.
    """
    try:
        config = DetectorConfig(**settings | {"effort": Effort(settings.get("effort", DetectorConfig.effort))})
    except ValueError as error:
        raise ConfigError(f"effort must be one of {', '.join(Effort)}, got {settings['effort']}") from error
    # Through a file in any case: only what was read back scores like `anomaly score` to the last digit.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.safetensors") if model is None else Path(model)
        known, region = _paths(anomalies), _optional(roi)
        training.train(_paths(normal), path, config, anomalies=known, roi=region, device=device, progress=_silent)
        return load_model(path, choose_device(device))


def score(inputs: Names, model: Model | Name, *, roi: Name | None = None, device: str = "auto") -> pd.DataFrame:
    """Rank images by how far they deviate from normal.

    Args:
        inputs: folders or files, one or several.
        model: from `train`, or its file.
        roi: as in `train`, for these images; that of the model if left out.
        device: as in `train`.

    Returns:
        The table that `anomaly score` writes: one row per file, most anomalous first.

    Raises:
        AnomalyError: what the command would say.
    """
    chosen = choose_device(device)
    loaded = _loaded(model, device)
    rows = scoring.rank(find.collect(_paths(inputs)), loaded, chosen, _silent, _optional(roi))
    return Table(rows, loaded.detector.column_names, with_quality=True).to_frame()


def regions(
    inputs: Names,
    model: Model | Name,
    *,
    threshold: float = 1.0,
    min_area: int = 0,
    roi: Name | None = None,
    device: str = "auto",
) -> pd.DataFrame:
    """Find all anomalous regions of images.

    Args:
        inputs: folders or files, one or several.
        model: from `train`, or its file.
        threshold: map values from here on belong to regions; 1 is the limit of normal.
        min_area: pixels of the file; smaller regions are left out.
        roi: as in `score`.
        device: as in `train`.

    Returns:
        The table that `anomaly score --regions` writes: one row per region, most anomalous image first.

    Raises:
        AnomalyError: what the command would say.
    """
    rule = RegionRule(threshold=threshold, min_area=min_area, listed=True)
    chosen = choose_device(device)
    paths = find.collect(_paths(inputs))
    rows = scoring.rank(paths, _loaded(model, device), chosen, _silent, roi=_optional(roi), region_rule=rule)
    return RegionTable(rows).to_frame()


def heatmap(
    image: Name, model: Model | Name, *, side_by_side: bool = False, roi: Name | None = None, device: str = "auto"
) -> Image.Image:
    """Draw the anomaly map of one image over it, as `anomaly heatmap` does; `roi` as in `score`.

    Args:
        image: file or URL.
        model: from `train`, or its file.
        side_by_side: whether the image itself stands to the left.
        roi: region of interest, as in `score`.
        device: as in `train`.

    Raises:
        InputError: the image cannot be read.
        AnomalyError: what the command would say.
    """
    path, chosen, loaded = path_of(os.fspath(image)), choose_device(device), _loaded(model, device)
    region = choose_roi(loaded, _optional(roi))
    (measured,) = Scorer(loaded, [chosen], roi=region).measure([path])
    try:
        if isinstance(measured, UnreadableImageError):
            raise measured
        pixels = read_pixels(path, loaded.config.window)
    except UnreadableImageError as error:
        raise InputError(f"cannot read {path}: {error.reason}") from error
    (row,) = flag_rows([make_row(path, measured, loaded.calibration)], DEFAULT_RULE)
    assert row.score is not None  # of a readable image
    pixels, heat = draw_region(pixels, measured.anomaly_map, measured.inspected)
    return draw_overlay(
        pixels,
        heat,
        caption=str(path),
        score=row.score,
        flagged=row.flagged,
        side_by_side=side_by_side,
    )


def _optional(name: Name | None) -> Path | None:
    return None if name is None else Path(name)


def _loaded(model: Model | Name, device: str) -> Model:
    chosen = choose_device(device)
    if isinstance(model, Model):
        model.detector.to(chosen)
        return model
    return load_model(Path(model), chosen)


def _paths(names: Names) -> list[Path]:
    paths = [path_of(os.fspath(name)) for name in ([names] if isinstance(names, str | os.PathLike) else names)]
    find.check_named(paths)
    return paths


def _silent(_phase: str, _done: int, _total: int) -> None:
    """Report no progress: notebooks show results only."""
