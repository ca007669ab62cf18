"""Draw one overlay per image and, on request, save its anomaly map; prints nothing."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from anomaly_cli.config import DEFAULT_RULE, RawMap
from anomaly_cli.detector.checkpoint import load_model
from anomaly_cli.detector.devices import choose_devices
from anomaly_cli.errors import InputError, OutputError, UnreadableImageError
from anomaly_cli.files import atomic_output
from anomaly_cli.images.decode import read_pixels
from anomaly_cli.images.find import by_count, collect
from anomaly_cli.images.patterns import EVERY_FILE, PathPatterns
from anomaly_cli.outputs import Kind, Output, check_kind, png_mark
from anomaly_cli.paths import path_of
from anomaly_cli.review.overlay import draw_overlay, encode_map16
from anomaly_cli.scoring.measure import Measured, Scorer
from anomaly_cli.scoring.parallel import Progress
from anomaly_cli.scoring.rows import flag_rows, measure_rows
from anomaly_cli.scoring.score import nothing_readable, score_files
from anomaly_cli.tables.reader import files_of, read_paths

LONGEST_NAME = 255 - len(".map.png.partial")  # bytes; file systems allow 255, suffixes included


@dataclass(frozen=True)
class HeatmapReport:
    """What `heatmap` drew.

    Attributes:
        written: overlays, most anomalous first.
        shortened: those of them whose name would be too long for a file system.
        unreadable: images without an overlay, with the reason.
    """

    written: list[Path]
    shortened: list[Path]
    unreadable: list[tuple[Path, str]]
    passed_over: dict[str, int] = field(default_factory=dict)  # by kind


def heatmap(
    inputs: Sequence[Path],
    model_path: Path,
    out: Path,
    *,
    top: int | None = None,
    scores: Path | None = None,
    raw: RawMap | None = None,
    patterns: PathPatterns = EVERY_FILE,
    device: str = "auto",
    progress: Progress,
) -> HeatmapReport:
    """Draw overlays of all images, of the `top` most anomalous, or of those listed in a table of `score`.

    Raises:
        OutputError: `out` cannot be written; said before any image is read.
        AnomalyError: an input, the model or the device cannot be used.
    """
    _check_folder(out)
    devices = choose_devices(device)
    passed_over: Counter[str] = Counter()
    paths = collect(inputs, patterns, passed_over) if inputs else []
    if scores is not None:
        listed = read_paths(scores)
        files = files_of([path for path, _, _ in listed], scores)
        ranking = [(path, value, flagged) for path, (_, value, flagged) in zip(files, listed, strict=True)]
        if inputs:
            wanted = set(paths)
            ranking = [entry for entry in ranking if entry[0] in wanted]
        paths = [path for path, _, _ in ranking[:top]]
    for path in paths:
        check_kind(Output("--out", _overlay_of(path, out), Kind.PICTURE))
    scorer = Scorer(load_model(model_path, devices[0]), devices)
    if scores is None:
        rows = flag_rows(score_files(paths, partial(measure_rows, scorer=scorer), progress), DEFAULT_RULE)
        ranking = [(path_of(row.path), row.score, row.flagged) for row in rows if row.score is not None]
    if not ranking:
        raise InputError(f"no image to draw: {scores} lists none of the inputs")
    report = _draw(ranking[:top], scorer, out, raw, progress)
    return replace(report, passed_over=by_count(passed_over))


def _draw(
    ranking: list[tuple[Path, float, bool]],
    scorer: Scorer,
    out: Path,
    raw: RawMap | None,
    progress: Progress,
) -> HeatmapReport:
    paths = [path for path, _, _ in ranking]
    written: list[Path] = []
    shortened: list[Path] = []
    unreadable: list[tuple[Path, str]] = []
    for done, ((path, value, flagged), result) in enumerate(zip(ranking, scorer.measure(paths), strict=True), start=1):
        try:
            if isinstance(result, UnreadableImageError):
                raise result
            pixels = read_pixels(path, scorer.model.config.window)
        except UnreadableImageError as error:
            unreadable.append((path, error.reason))
            continue
        picture = draw_overlay(pixels, result.anomaly_map, caption=os.fspath(path), score=value, flagged=flagged)
        target = mirrored(path, out)
        written.append(_overlay_of(path, out))
        if len(os.fsencode(path.name)) > LONGEST_NAME:
            shortened.append(written[-1])
        _save_picture(picture, written[-1])
        if raw is not None:
            _save_raw(result, target, raw)
        progress("drawing", done, len(paths))
    if not written:
        raise nothing_readable(len(paths), *unreadable[0])
    return HeatmapReport(written, shortened, unreadable)


def mirrored(path: Path, out: Path) -> Path:
    """Map a path into the output folder: relative to the current folder, without root, `__` for `..`.

    A name that leaves no room for the suffixes of the outputs is cut; a digest keeps it unique.
    """
    inside = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    target = out.joinpath(*("__" if part == ".." else part for part in inside.parts if part != inside.anchor))
    name = os.fsencode(target.name)
    if len(name) <= LONGEST_NAME:
        return target
    digest = hashlib.sha256(name).hexdigest()[:8]
    return target.with_name(f"{name[: LONGEST_NAME - 9].decode('utf-8', 'ignore')}~{digest}")


def _check_folder(out: Path) -> None:
    """Refuse a folder that cannot be made or written to."""
    existing = next(each for each in (out, *out.parents) if os.path.lexists(each))
    if not existing.is_dir():
        raise OutputError(f"cannot write {out}: not a folder: {existing}")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write {out}: permission denied")


def _overlay_of(path: Path, out: Path) -> Path:
    target = mirrored(path, out)
    return target.with_name(target.name + ".png")


def _save_picture(picture: Image.Image, target: Path) -> None:
    _make_parent(target)
    with atomic_output(target) as file:
        picture.save(file, "PNG", compress_level=3, pnginfo=png_mark())


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
