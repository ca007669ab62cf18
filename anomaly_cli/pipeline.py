"""The shared engine behind the command line: one function a subcommand; it never prints and never exits."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from anomaly_cli.backbone import build_backbone
from anomaly_cli.checkpoint import Model, Provenance, load_model, read_header, save_model
from anomaly_cli.config import DEFAULT_FDR, DetectorConfig, RawMap
from anomaly_cli.errors import ConfigError, InputError, OutputError, UnreadableImageError
from anomaly_cli.images import find_images, read_pixels
from anomaly_cli.normals import Run
from anomaly_cli.overlay import draw_overlay, encode_map16
from anomaly_cli.scoring import Measured, Progress, flag_rows, measure_images, to_row, worker_count
from anomaly_cli.table import Row, TableFormat, atomic_output, format_of, rank_rows, read_paths, write_table


@dataclass(frozen=True)
class TrainReport:
    """What `train` learned."""

    model_path: Path
    model: Model
    unreadable: list[tuple[Path, str]]


@dataclass(frozen=True)
class ScoreReport:
    """What `score` found: rows in rank order, and how well the normal images resolve them."""

    rows: list[Row]
    scale_names: tuple[str, ...]
    normal_count: int
    fdr: float
    threshold: float | None

    @property
    def readable(self) -> list[Row]:
        """Rows of the files that could be read, most anomalous first."""
        return [row for row in self.rows if row.status == "ok"]

    @property
    def flagged(self) -> list[Row]:
        """Rows that the chosen rule calls anomalous."""
        return [row for row in self.rows if row.flagged]

    @property
    def unreadable(self) -> list[Row]:
        """Rows of the files that could not be read."""
        return [row for row in self.rows if row.status != "ok"]


@dataclass(frozen=True)
class HeatmapReport:
    """What `heatmap` drew."""

    written: list[Path]
    unreadable: list[tuple[Path, str]]


def choose_device(name: str) -> torch.device:
    """Resolve `auto` to the first GPU where torch sees one, else the CPU.

    Raises:
        ConfigError: the device does not exist here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # fails on devices that hold shapes only
    except (RuntimeError, AssertionError, ImportError, NotImplementedError) as error:
        raise ConfigError(f"device {name} is not available here; use auto or cpu") from error
    return device


def collect(inputs: Sequence[Path]) -> list[Path]:
    """List the images of the inputs.

    Raises:
        InputError: there is none, or an input does not exist.
    """
    paths = find_images(inputs)
    if not paths:
        raise InputError(f"no image found in {', '.join(map(os.fspath, inputs))}")
    return paths


def train(
    normal: Sequence[Path],
    model_path: Path,
    config: DetectorConfig,
    *,
    anomalies: Sequence[Path] = (),
    weights: Path | None = None,
    device: str = "auto",
    progress: Progress,
) -> TrainReport:
    """Learn what normal looks like and write the model file."""
    from anomaly_cli.training import train_detector  # brings scikit-learn, which scoring starts faster without

    _check_writable(model_path)
    paths = collect(normal)
    known = collect(anomalies) if anomalies else []
    run = Run(config, choose_device(device), worker_count(), progress)
    trained = train_detector(paths, known, build_backbone(config.backbone, weights, config.seed), run)
    provenance = Provenance(
        images=len(trained.normals.paths),
        anomalies=trained.anomalies,
        head_gain=trained.head_gain,
        unreadable=len(trained.normals.unreadable),
        training_set=trained.normals.digest,
        versions={
            "python": platform.python_version(),
            **{name: version(name) for name in ("anomaly-cli", "torch", "torchvision", "pillow")},
        },
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    model = Model(trained.detector, trained.calibration, trained.map_unit, config, provenance)
    save_model(model, model_path)
    return TrainReport(model_path, model, trained.normals.unreadable)


def _check_writable(path: Path) -> None:
    """Refuse an output that cannot be written before the work is done, not after."""
    parent = path.parent
    try:
        if not parent.is_dir():
            raise OutputError(f"cannot write {path}: no such folder: {parent}")
        if path.is_dir():
            raise OutputError(f"cannot write {path}: it is a folder")
        if not os.access(parent, os.W_OK) and not path.exists():
            raise OutputError(f"cannot write {path}: permission denied")
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from error


def score(
    inputs: Sequence[Path],
    model_path: Path,
    *,
    fdr: float = DEFAULT_FDR,
    threshold: float | None = None,
    device: str = "auto",
    progress: Progress,
) -> ScoreReport:
    """Rank images by how far they deviate from normal; the table is written by `write_scores`."""
    if not 0 < fdr < 1:
        raise ConfigError(f"--fdr must be between 0 and 1, got {fdr}")
    if threshold is not None and not threshold >= 0:
        raise ConfigError(f"--threshold must be 0 or more, got {threshold}")
    chosen = choose_device(device)
    return _score(collect(inputs), load_model(model_path, chosen), fdr, threshold, chosen, progress)


def _score(
    paths: list[Path],
    model: Model,
    fdr: float,
    threshold: float | None,
    device: torch.device,
    progress: Progress,
) -> ScoreReport:
    results = measure_images(model.detector, model.map_unit, paths, model.config.image_size, worker_count(), device)
    rows = []
    for path, result in zip(paths, results, strict=True):
        rows.append(to_row(path, result, model.calibration))
        progress("scoring", len(rows), len(paths))
    if all(row.status != "ok" for row in rows):
        raise _nothing_readable(len(rows), rows[0].path, rows[0].reason)
    ranked = rank_rows(flag_rows(rows, fdr, threshold))
    names = model.detector.scale_names
    return ScoreReport(ranked, names, len(model.calibration.normal_scores), fdr, threshold)


def _nothing_readable(count: int, first: str | Path, reason: str) -> InputError:
    return InputError(f"none of the {count} files can be read, first {first}: {reason}")


def check_output(out: Path | None, chosen: TableFormat | None) -> TableFormat:
    """Choose the format of the table and refuse an impossible target before the work is done."""
    table_format = format_of(out, chosen)
    if out is not None and not os.fspath(out).startswith("/dev/"):
        _check_writable(out)
    return table_format


def write_scores(report: ScoreReport, out: Path | None, table_format: TableFormat) -> None:
    """Write the table to a file, or to stdout where `out` is None."""
    write_table(report.rows, report.scale_names, out, table_format)


def heatmap(
    inputs: Sequence[Path],
    model_path: Path,
    out: Path,
    *,
    top: int | None = None,
    scores: Path | None = None,
    raw: RawMap | None = None,
    device: str = "auto",
    progress: Progress,
) -> HeatmapReport:
    """Draw overlays of all images, of the `top` most anomalous, or of those in a table of `score`."""
    chosen = choose_device(device)
    model = load_model(model_path, chosen)
    if scores is not None:
        ranking = [(Path(path), value, flagged) for path, value, flagged in read_paths(scores)]
        if inputs:
            wanted = set(collect(inputs))
            ranking = [entry for entry in ranking if entry[0] in wanted]
    else:
        rows = _score(collect(inputs), model, DEFAULT_FDR, None, chosen, progress).readable
        ranking = [(Path(row.path), row.score or 0.0, row.flagged) for row in rows]
    if not ranking:
        raise InputError(f"no image to draw: {scores} lists none of the inputs")
    return _draw(ranking[:top], model, out, raw, chosen, progress)


def _draw(
    ranking: list[tuple[Path, float, bool]],
    model: Model,
    out: Path,
    raw: RawMap | None,
    device: torch.device,
    progress: Progress,
) -> HeatmapReport:
    paths = [path for path, _, _ in ranking]
    results = measure_images(model.detector, model.map_unit, paths, model.config.image_size, worker_count(), device)
    written: list[Path] = []
    unreadable: list[tuple[Path, str]] = []
    for done, ((path, value, flagged), result) in enumerate(zip(ranking, results, strict=True), start=1):
        try:
            if isinstance(result, UnreadableImageError):
                raise result
            pixels = read_pixels(path)
        except UnreadableImageError as error:
            unreadable.append((path, error.reason))
            continue
        picture = draw_overlay(pixels, result.anomaly_map, caption=os.fspath(path), score=value, flagged=flagged)
        target = mirrored(path, out)
        written.append(target.with_name(target.name + ".png"))
        _save_picture(picture, written[-1])
        if raw is not None:
            _save_raw(result, target, raw)
        progress("drawing", done, len(paths))
    if not written:
        raise _nothing_readable(len(paths), *unreadable[0])
    return HeatmapReport(written, unreadable)


def mirrored(path: Path, out: Path) -> Path:
    """Place of a file in the output folder: its path from the current folder, without root, `__` for `..`."""
    inside = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    return out.joinpath(*("__" if part == ".." else part for part in inside.parts if part != inside.anchor))


def _save_picture(picture: Image.Image, target: Path) -> None:
    _make_parent(target)
    with atomic_output(target) as file:
        picture.save(file, "PNG", compress_level=3)


def _save_raw(result: Measured, target: Path, raw: RawMap) -> None:
    if raw is RawMap.PNG16:
        _save_picture(Image.fromarray(encode_map16(result.anomaly_map)), target.with_name(target.name + ".map.png"))
        return
    with atomic_output(target.with_name(target.name + ".map.npy")) as file:
        np.save(file, result.anomaly_map)


def _make_parent(target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write {target}: {error.strerror}") from error


def info(model_path: Path) -> dict[str, Any]:
    """Describe a model file: its header, with prototypes and channels a scale."""
    return read_header(model_path)
