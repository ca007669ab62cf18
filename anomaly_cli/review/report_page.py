"""Write the review page: one HTML file with the table, thumbnails and the script that shows them; prints nothing."""

from __future__ import annotations

import math
import os
import tempfile
from base64 import b64encode
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, FunctionLoader
from jinja2.utils import htmlsafe_json_dumps

from anomaly_cli.config import DEFAULT_REGIONS, DEFAULT_RULE, RegionRule
from anomaly_cli.detector.checkpoint import Model, load_model
from anomaly_cli.detector.devices import choose_device
from anomaly_cli.errors import UnreadableImageError
from anomaly_cli.files import atomic_output, os_errors_as_output_error
from anomaly_cli.outputs import Kind, Output, check_outputs
from anomaly_cli.paths import path_of
from anomaly_cli.review.evidence import find_evidence
from anomaly_cli.review.overlay import FULL_SCALE, colour_table
from anomaly_cli.review.thumbnails import make_heat, make_thumbnail, with_border
from anomaly_cli.scoring.batch_verdict import Verdict, judge_batch
from anomaly_cli.scoring.measure import Measured, Scorer, choose_roi
from anomaly_cli.scoring.parallel import Progress, parallel_map, worker_count
from anomaly_cli.scoring.rows import regions_of
from anomaly_cli.statistics.fdr import null_proportion
from anomaly_cli.tables.reader import file_of
from anomaly_cli.tables.row import Value, rounded
from anomaly_cli.tables.score_table import ReportTable

ASSETS = files("anomaly_cli.review") / "assets"
JSON: dict[str, Any] = {"separators": (",", ":"), "allow_nan": False}  # ASCII: surrogates and U+2028 are escaped
SAME_SCORE = 0.01  # relative tolerance; processors and library versions differ by less


@dataclass(frozen=True)
class PageReport:
    """What `report` wrote.

    Attributes:
        files: number of rows of the table.
        unreadable: number of rows without a score.
        pictured: number of images with a thumbnail.
        left_out: number of images listed without one because of `top`.
        missing: files that can no longer be read, with the reason.
        changed: number of images that score differently now: another model, or other files.
        has_model: whether there are heat maps; a table of `audit` has no model.
        size: of the page in bytes.
    """

    files: int
    unreadable: int
    pictured: int
    left_out: int
    missing: list[tuple[Path, str]]
    changed: int
    has_model: bool
    size: int


@dataclass
class _Pictures:
    """How the pictures are made, and counts collected meanwhile."""

    scorer: Scorer | None
    region_rule: RegionRule
    missing: list[tuple[Path, str]] = field(default_factory=list)
    changed: int = 0


def write_report(
    table_path: Path,
    model_path: Path,
    out: Path,
    *,
    top: int,
    region_rule: RegionRule = DEFAULT_REGIONS,
    roi: Path | None = None,
    device: str = "auto",
    progress: Progress,
) -> PageReport:
    """Write the page of a table.

    Args:
        table_path: of `score`, in any format, or of `audit`.
        model_path: of the model that scored the table; not read for a table without p-values, which `audit` wrote.
        out: HTML file.
        top: number of most anomalous images with a thumbnail; the others are listed without.
        region_rule: which regions are framed and listed.
        roi: region of interest of the images, where it is not that of the model.
        device: to compute the anomaly maps again.
        progress: called after each thumbnail.

    Raises:
        InputError: the table cannot be read or is not a table of scores.
        CheckpointError: the model cannot be read.
        OutputError: the page cannot be written.
    """
    check_outputs([Output("--out", out, Kind.PAGE)], [table_path, model_path])
    table = ReportTable.read(table_path)
    model = load_model(model_path, choose_device(device)) if table.p_values else None
    pictures = _Pictures(_scorer(model, device, roi), region_rule)
    # To a temporary file first: the page lists the missing files before the thumbnails, which need not fit in memory.
    shown = min(top, len(table.readable))
    with os_errors_as_output_error(str(out)), tempfile.TemporaryFile("w+", encoding="ascii") as spooled:
        for picture in _make_pictures(table, top, pictures, progress):
            spooled.write(htmlsafe_json_dumps(picture, **JSON) + "\n")
        spooled.seek(0)
        place = {"root": os.path.relpath(_base(table), out.parent), "pictures": shown}
        size = _write_page(_facts(table, pictures, model_path) | place, spooled, out)
    return PageReport(
        files=len(table.readable) + len(table.unreadable),
        unreadable=len(table.unreadable),
        pictured=shown - len(pictures.missing),
        left_out=len(table.readable) - shown,
        missing=pictures.missing,
        changed=pictures.changed,
        has_model=model is not None,
        size=size,
    )


def _scorer(model: Model | None, device: str, roi: Path | None) -> Scorer | None:
    return None if model is None else Scorer(model, [choose_device(device)], roi=choose_roi(model, roi))


def _base(table: ReportTable) -> Path:
    """Folder that the relative paths of a table start from: that of the table if its first file is found there only."""
    first = next((str(path) for path in table.column("path")), ".")
    return Path.cwd() if file_of(first, table.source) == path_of(first) else table.source.parent


def _facts(table: ReportTable, pictures: _Pictures, model_path: Path) -> dict[str, Any]:
    """Collect the data of the page apart from the thumbnails, once these are made."""
    model = None if pictures.scorer is None else pictures.scorer.model
    verdict = None if model is None else _verdict(table, model, model_path)
    normals = [] if model is None else model.calibration.normal_scores.tolist()
    return {
        "table": os.fspath(table.source),
        "digest": table.digest,
        "model": None if model is None else os.fspath(model_path),
        "columns": table.columns,
        "rows": table.readable,
        "unreadable": table.unreadable,
        "scales": [name.removeprefix("scale_") for name in table.columns if name.startswith("scale_")],
        "normals": [float(f"{score:.6g}") for score in normals],
        "normalShare": null_proportion(table.p_values) if table.p_values else 1.0,
        "threshold": table.threshold,
        "verdict": None if verdict is None else asdict(verdict),
        "tints": _text(colour_table().tobytes()),
        "fullScale": FULL_SCALE,
        "regionThreshold": pictures.region_rule.threshold,
        "minArea": pictures.region_rule.min_area,
        "missing": len(pictures.missing),
        "changed": pictures.changed,
    }


def _verdict(table: ReportTable, model: Model, model_path: Path) -> Verdict | None:
    names = model.detector.scale_names
    rows = table.rows(names)
    if rows is None or not table.readable:
        return None
    return judge_batch(rows, names, model.calibration, DEFAULT_RULE, model_path)


def _make_pictures(table: ReportTable, top: int, pictures: _Pictures, progress: Progress) -> Iterator[dict[str, Any]]:
    """Make the data of each image in rank order; the page reads it when the image comes into view."""
    paths = table.paths[:top] if top else []  # without pictures the files need not be there
    scorer = pictures.scorer
    model = None if scorer is None else scorer.model
    window = None if model is None else model.config.window
    drawn = parallel_map(lambda path: _thumbnail(path, window), paths, worker_count())
    measured = iter([None] * len(paths)) if scorer is None else scorer.measure(paths)
    for i, (path, thumbnail, result) in enumerate(zip(paths, drawn, measured, strict=True)):
        try:
            picture = _picture(model, thumbnail, result, pictures.region_rule)
        except UnreadableImageError as error:
            picture = {"missing": error.reason}
            pictures.missing.append((path, error.reason))
        if model is not None and isinstance(result, Measured):
            pictures.changed += _differs(model, result, table.readable[i][table.columns.index("score")])
        yield picture
        progress("drawing", i + 1, len(paths))


def _thumbnail(path: Path, window: tuple[float, float] | None) -> bytes | UnreadableImageError:
    try:
        return make_thumbnail(path, window)
    except UnreadableImageError as error:
        return error


def _picture(
    model: Model | None,
    thumbnail: bytes | UnreadableImageError,
    result: Measured | UnreadableImageError | None,
    region_rule: RegionRule,
) -> dict[str, Any]:
    """Assemble the data of one image.

    Raises:
        UnreadableImageError: the file can no longer be read.
    """
    if isinstance(thumbnail, UnreadableImageError):
        raise thumbnail
    if isinstance(result, UnreadableImageError):
        raise result
    if isinstance(result, Measured) and result.inspected is not None:
        thumbnail = with_border(thumbnail, result.inspected)
    picture: dict[str, Any] = {"image": _text(thumbnail)}
    if isinstance(result, Measured):
        picture["regions"] = [
            (*region[:4], region.area, rounded(region.peak), region.scale) for region in regions_of(result, region_rule)
        ]
    if isinstance(result, Measured) and (heat := make_heat(result.anomaly_map)) is not None:
        picture |= {"heat": _text(heat.levels), "cells": [heat.height, heat.width]}
        if model is not None and (evidence := find_evidence(model, result)) is not None:
            pair = {"anomalous": _text(evidence.anomalous), "normal": _text(evidence.normal)}
            picture["evidence"] = {**pair, "scale": evidence.scale}
    return picture


def _differs(model: Model, result: Measured, score: Value) -> bool:
    """Whether an image now scores differently than in the table."""
    now = float(model.calibration.scores(result.deviations[None])[0][0])
    return not math.isclose(now, float(score or 0.0), rel_tol=SAME_SCORE)


def _write_page(data: dict[str, Any], pictures: Iterable[str], out: Path) -> int:
    """Render the template picture by picture and return the size of the file in bytes.

    Args:
        data: of the page.
        pictures: one JSON text per image in rank order, safe within a script element.
        out: HTML file.
    """
    environment = Environment(loader=FunctionLoader(_asset), autoescape=True, trim_blocks=True)
    environment.policies["json.dumps_kwargs"] = JSON
    page = environment.get_template("page.html")
    with atomic_output(out) as file:
        for part in page.generate(style=_asset("page.css"), script=_asset("page.js"), data=data, pictures=pictures):
            file.write(part.encode())
        return file.tell()


def _asset(name: str) -> str:
    return (ASSETS / name).read_text("utf-8")


def _text(content: bytes) -> str:
    return b64encode(content).decode()
