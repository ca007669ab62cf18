"""Draw one overlay per image and, on request, save its anomaly map; prints nothing."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from anomaly_cli.config import DEFAULT_REGIONS, DEFAULT_RULE, RawMap, RegionRule
from anomaly_cli.detector.checkpoint import load_model
from anomaly_cli.detector.devices import choose_devices
from anomaly_cli.errors import InputError, OutputError, UnreadableImageError
from anomaly_cli.files import atomic_output
from anomaly_cli.images.decode import read_pixels
from anomaly_cli.images.find import by_count, collect
from anomaly_cli.images.patterns import EVERY_FILE, PathPatterns
from anomaly_cli.outputs import png_mark
from anomaly_cli.paths import path_of
from anomaly_cli.review.mirror import LONGEST_NAME, Mirror, check_pictures
from anomaly_cli.review.overlay import draw_overlay, encode_map16
from anomaly_cli.review.roi_border import draw_region
from anomaly_cli.scoring.measure import Measured, Scorer, choose_roi
from anomaly_cli.scoring.parallel import Progress
from anomaly_cli.scoring.regions import region_cells, region_mask
from anomaly_cli.scoring.rows import flag_rows, measure_rows
from anomaly_cli.scoring.score import nothing_readable, score_files
from anomaly_cli.tables.reader import files_of, read_paths


@dataclass(frozen=True)
class Drawn:
    """What is drawn of each image.

    Attributes:
        out: folder of the overlays and raw maps.
        raw: format of the raw maps, if they are wanted.
        masks: folder of the masks of regions, if they are wanted.
        region_rule: which regions the masks show.
        side_by_side: whether the image stands beside its overlay.
    """

    out: Path
    raw: RawMap | None = None
    masks: Path | None = None
    region_rule: RegionRule = DEFAULT_REGIONS
    side_by_side: bool = False

    def check_folders(self) -> None:
        """Refuse folders that cannot be made or written to."""
        _check_folder(self.out)
        if self.masks is not None:
            _check_folder(self.masks)

    def pictures(self, path: Path, mirror: Mirror) -> Iterator[tuple[str, Path]]:
        """Name the pictures of an image, each with its option."""
        yield "--out", mirror.picture(path, self.out)
        if self.raw is RawMap.PNG16:
            yield "--raw", mirror.picture(path, self.out, self.raw.suffix)
        if self.masks is not None:
            yield "--masks", mirror.picture(path, self.masks)


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
    drawn: Drawn,
    *,
    top: int | None = None,
    scores: Path | None = None,
    patterns: PathPatterns = EVERY_FILE,
    roi: Path | None = None,
    device: str = "auto",
    progress: Progress,
) -> HeatmapReport:
    """Draw overlays of all images, of the `top` most anomalous, or of those listed in a table of `score`.

    Raises:
        OutputError: a folder cannot be written; said before any image is read.
        AnomalyError: an input, the model or the device cannot be used.
    """
    drawn.check_folders()
    devices = choose_devices(device)
    passed_over: Counter[str] = Counter()
    paths = collect(inputs, patterns, passed_over) if inputs else []
    folders = (path if path.is_absolute() and path.is_dir() else path.parent for path in inputs)
    if scores is not None:
        listed = read_paths(scores)
        files = files_of([path for path, _, _ in listed], scores)
        folders = (path.parent for path in files)
        ranking = [(path, value, flagged) for path, (_, value, flagged) in zip(files, listed, strict=True)]
        if inputs:
            wanted = set(paths)
            ranking = [entry for entry in ranking if entry[0] in wanted]
        paths = [path for path, _, _ in ranking[:top]]
    mirror = Mirror.of(folders)
    check_pictures(picture for path in paths for picture in drawn.pictures(path, mirror))
    model = load_model(model_path, devices[0])
    scorer = Scorer(model, devices, roi=choose_roi(model, roi, paths))
    if scores is None:
        rows = flag_rows(score_files(paths, partial(measure_rows, scorer=scorer), progress), DEFAULT_RULE)
        ranking = [(path_of(row.path), row.score, row.flagged) for row in rows if row.score is not None]
    if not ranking:
        raise InputError(f"no image to draw: {scores} lists none of the inputs")
    report = _draw(ranking[:top], scorer, drawn, mirror, progress)
    return replace(report, passed_over=by_count(passed_over))


def _draw(
    ranking: list[tuple[Path, float, bool]],
    scorer: Scorer,
    drawn: Drawn,
    mirror: Mirror,
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
        pixels, heat = draw_region(pixels, result.anomaly_map, result.inspected)
        picture = draw_overlay(
            pixels,
            heat,
            caption=os.fspath(path),
            score=value,
            flagged=flagged,
            side_by_side=drawn.side_by_side,
        )
        written.append(mirror.picture(path, drawn.out))
        if len(os.fsencode(path.name)) > LONGEST_NAME:
            shortened.append(written[-1])
        _save_picture(picture, written[-1])
        if drawn.raw is not None:
            _save_raw(result, mirror.picture(path, drawn.out, drawn.raw.suffix), drawn.raw)
        if drawn.masks is not None:
            _save_picture(_mask(result, drawn.region_rule), mirror.picture(path, drawn.masks))
        progress("drawing", done, len(paths))
    if not written:
        raise nothing_readable(len(paths), *unreadable[0])
    return HeatmapReport(written, shortened, unreadable)


def _check_folder(out: Path) -> None:
    """Refuse a folder that cannot be made or written to."""
    existing = next(each for each in (out, *out.parents) if os.path.lexists(each))
    if not existing.is_dir():
        raise OutputError(f"cannot write {out}: not a folder: {existing}")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write {out}: permission denied")


def _save_picture(picture: Image.Image, target: Path) -> None:
    _make_parent(target)
    with atomic_output(target) as file:
        picture.save(file, "PNG", compress_level=3, pnginfo=png_mark())


def _save_raw(result: Measured, target: Path, raw: RawMap) -> None:
    if raw is RawMap.PNG16:
        _save_picture(Image.fromarray(encode_map16(result.anomaly_map)), target)
        return
    with atomic_output(target) as file:
        np.save(file, result.anomaly_map)


def _mask(result: Measured, rule: RegionRule) -> Image.Image:
    """Draw the regions white on black, at the size of the file, one bit a pixel."""
    cells = region_cells(result.anomaly_map, rule, result.height, result.width)
    return Image.fromarray(region_mask(cells, result.height, result.width))


def _make_parent(target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write {target}: {error.strerror}") from error
