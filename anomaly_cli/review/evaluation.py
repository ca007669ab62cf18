"""Evaluate a table against labels, and the anomaly maps against masks: figures with intervals; never prints."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from anomaly_cli.detector.checkpoint import load_model
from anomaly_cli.detector.devices import choose_device
from anomaly_cli.errors import InputError, UnreadableImageError
from anomaly_cli.files import atomic_output, check_writable, write_to_stdout
from anomaly_cli.paths import path_of
from anomaly_cli.review.evaluation_plots import check_curves, draw_curves
from anomaly_cli.review.masks import MASK_SUFFIX, find_masks, mask_of, read_mask, resize_map
from anomaly_cli.scoring.measure import measure_images
from anomaly_cli.scoring.parallel import Progress, worker_count
from anomaly_cli.statistics.bootstrap import DRAWS, PIXEL_DRAWS, Counts, bootstrap, share_interval
from anomaly_cli.statistics.image_metrics import image_metrics, precision_at
from anomaly_cli.statistics.pixel_metrics import Map, Mask, PixelCurves, PixelMetrics
from anomaly_cli.tables.labels import FOLDERS, MatchedLabels, label_paths
from anomaly_cli.tables.score_table import ReportTable

PRECISION_AT = (10, 100, 1_000)  # the most anomalous
MANY = 20_000  # images; beyond, fewer draws say as much
SHARES = ("precision", "recall", "false_alarms")  # in a `Confusion`


Scores = NDArray[np.float64]


Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Figure:
    """One figure with the ends of its 95 % interval, in [0, 1]."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Confusion:
    """What the table flags, against the labels: counts of readable labelled images.

    Attributes:
        precision: share of anomalous images among the flagged; None where none is flagged.
        recall: share of flagged images among the anomalous.
        false_alarms: share of flagged images among the normal.
    """

    flagged_anomalous: int
    flagged_normal: int
    missed_anomalous: int
    passed_normal: int
    precision: Figure | None
    recall: Figure
    false_alarms: Figure

    @classmethod
    def count(cls, anomalous: Flags, flagged: Flags) -> Self:
        """Count (N,) labels and flags; both labels must occur. Intervals are exact, not drawn."""
        hits, alarms = int((flagged & anomalous).sum()), int((flagged & ~anomalous).sum())
        bad, good = int(anomalous.sum()), int((~anomalous).sum())
        return cls(
            hits,
            alarms,
            bad - hits,
            good - alarms,
            precision=_share(hits, hits + alarms) if hits + alarms else None,
            recall=_share(hits, bad),
            false_alarms=_share(alarms, good),
        )


def _share(hits: int, count: int) -> Figure:
    return Figure(hits / count, *share_interval(hits, count))


@dataclass(frozen=True)
class Evaluation:
    """How a table does against labels.

    Attributes:
        table: file.
        normal: readable images labelled normal.
        anomalous: likewise.
        unreadable: files without a score, whatever their label; no figure counts them.
        unlabelled: readable images without a label; likewise.
        unused: labels of files that are not in the table.
        figures: by name; those of the images, then those of the maps where there are masks.
        confusion: at the cut of the table.
        without_mask: anomalous images that have no mask or a black one, and so no part in the figures of the maps;
            None where no masks were asked for.
    """

    table: str
    normal: int
    anomalous: int
    unreadable: int
    unlabelled: int
    unused: int
    figures: dict[str, Figure]
    confusion: Confusion
    without_mask: int | None

    def to_json(self) -> bytes:
        """Write one JSON object."""
        record = asdict(self)
        confusion = record["confusion"]
        for figure in (*record["figures"].values(), *(confusion[name] or {} for name in SHARES)):
            figure |= {end: round(value, 6) for end, value in figure.items()}
        return json.dumps(record, indent=2).encode() + b"\n"


def evaluate(
    table_path: Path,
    labels: str,
    *,
    masks: Path | None = None,
    model_path: Path,
    curves: Path | None = None,
    device: str = "auto",
    progress: Progress,
) -> Evaluation:
    """Compare a table with labels.

    Args:
        table_path: of `score` or `audit`, in any format.
        labels: file with `path` and `label`, or `folders`.
        masks: folder of masks; the maps are measured again for it.
        model_path: for the maps only.
        curves: picture to draw.
        device: for the maps only.
        progress: called after each map.

    Raises:
        InputError: table, labels or masks cannot be read, or only one class has readable images.
        OutputError: `curves` cannot be written.
    """
    if curves is not None:
        check_curves(curves)
        check_writable(curves)
    table = ReportTable.read(table_path)
    names = [str(path) for path in table.column("path")]
    matched = label_paths(labels, [*names, *(path for path, _ in table.unreadable)])
    chosen = np.array([name in matched.anomalous for name in names], bool)
    labelled = [name for name in names if name in matched.anomalous]
    anomalous = np.array([matched.anomalous[name] for name in labelled], bool)
    scores = np.array(table.column("score"), np.float64)[chosen]
    flagged = np.array(table.column("flagged"), bool)[chosen]
    if not labelled:
        raise InputError(f"{labels}: it labels no file of the table that can be read")
    if anomalous.all() or not anomalous.any():
        raise InputError(_one_class(labels, bool(anomalous.all())))
    figures, without_mask = image_figures(anomalous, scores), None
    if masks is not None:
        located, without_mask = _pixel_figures(labelled, anomalous, masks, model_path, device, progress)
        figures |= located
    if curves is not None:
        draw_curves(anomalous, scores, flagged, curves)
    return Evaluation(
        table=os.fspath(table_path),
        normal=int((~anomalous).sum()),
        anomalous=int(anomalous.sum()),
        unreadable=len(table.unreadable),
        unlabelled=_count_unlabelled(matched, names),
        unused=matched.unused,
        figures=figures,
        confusion=Confusion.count(anomalous, flagged),
        without_mask=without_mask,
    )


def _one_class(labels: str, all_anomalous: bool) -> str:
    rule = " (a folder called good or normal holds normal images)" if labels == FOLDERS else ""
    missing, present = ("normal", "anomalous") if all_anomalous else ("anomalous", "normal")
    return f"{labels}: no readable image of the table is labelled {missing}, all are {present}{rule}"


def _count_unlabelled(matched: MatchedLabels, readable: list[str]) -> int:
    return len(set(matched.unlabelled) & set(readable))


def image_figures(anomalous: Flags, scores: Scores, draws: int | None = None) -> dict[str, Figure]:
    """Measure a ranking of (N,) images, each figure with its interval; both classes must occur."""
    depths = [k for k in PRECISION_AT if 2 * k <= len(scores)]

    def measure(counts: Counts) -> list[float]:
        drawn_labels, drawn_scores = np.repeat(anomalous, counts), np.repeat(scores, counts)
        at = [precision_at(drawn_labels, drawn_scores, k) for k in depths]
        return [*image_metrics(drawn_labels, drawn_scores), *at]

    values = measure(np.ones(len(scores), np.int64))
    count = draws or (DRAWS if len(scores) <= MANY else DRAWS // 10)
    ends = bootstrap(measure, anomalous, count)
    names = ["image_auroc", "average_precision", "f1_max", "fpr_at_95_recall", *(f"precision_at_{k}" for k in depths)]
    return {name: Figure(value, *end) for name, value, end in zip(names, values, ends, strict=True)}


def _pixel_figures(
    paths: list[str], anomalous: Flags, masks: Path, model_path: Path, device: str, progress: Progress
) -> tuple[dict[str, Figure], int]:
    """Measure the maps of all images whose ground truth is known: figures, and how many anomalous ones lack a mask."""
    files = find_masks(masks)
    known = [mask_of(Path(path), files) if bad else None for path, bad in zip(paths, anomalous, strict=True)]
    if not any(known):
        raise InputError(f"{masks}: no mask is called like an anomalous image, such as {_example(paths, anomalous)}")
    if any(mask and os.path.realpath(mask) == os.path.realpath(path) for mask, path in zip(known, paths, strict=True)):
        raise InputError(f"{masks} holds the images themselves, not masks")
    chosen = choose_device(device)
    model = load_model(model_path, chosen)
    looked_at = [i for i, mask in enumerate(known) if mask or not anomalous[i]]
    files_of = [path_of(paths[i]) for i in looked_at]
    results = measure_images(model.detector, model.map_scale, files_of, model.config.image_size, worker_count(), chosen)
    used: list[int] = []

    def pairs() -> Iterator[tuple[Map, Mask]]:
        for done, (i, result) in enumerate(zip(looked_at, results, strict=True), start=1):
            if isinstance(result, UnreadableImageError):
                raise InputError(f"{paths[i]} cannot be read any more: {result.reason}")
            mask = read_mask(known[i], result.height, result.width)
            if mask.any() or not anomalous[i]:
                used.append(i)
                yield resize_map(result.anomaly_map, *mask.shape), mask
            progress("locating", done, len(looked_at))

    ranking = PixelCurves(pairs())
    labels = anomalous[used]
    if not labels.any():
        raise InputError(f"{masks}: every mask is black")
    drawn = itertools.count(1)

    def measure(counts: Counts) -> PixelMetrics:
        progress("drawing intervals", next(drawn), PIXEL_DRAWS)
        return ranking.measure(counts)

    values = ranking.measure(np.ones(len(used), np.int64))
    ends = bootstrap(measure, labels, PIXEL_DRAWS)
    figures = {name: Figure(value, *end) for name, value, end in zip(values._fields, values, ends, strict=True)}
    return figures, len(paths) - len(used)


def _example(paths: list[str], anomalous: Flags) -> str:
    path = Path(next(path for path, bad in zip(paths, anomalous, strict=True) if bad))
    return f"{path.parent.name}/{path.stem}{MASK_SUFFIX}.png"


def write_evaluation(evaluation: Evaluation, out: Path | None) -> None:
    """Write the evaluation as JSON, to stdout where `out` is None.

    Raises:
        OutputError: `out` cannot be written.
        BrokenPipeError: the reader of stdout went away.
    """
    if out is None:
        write_to_stdout(evaluation.to_json())
        return
    with atomic_output(out) as file:
        file.write(evaluation.to_json())
