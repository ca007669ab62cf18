"""Evaluate a table against labels and anomaly maps against masks: figures with confidence intervals; prints nothing."""

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
from anomaly_cli.files import check_writable, write_bytes
from anomaly_cli.images.roi import resize_mask
from anomaly_cli.paths import path_of
from anomaly_cli.review.evaluation_plots import check_curves, draw_curves
from anomaly_cli.review.masks import MASK_SUFFIX, find_masks, mask_of, read_mask, resize_map
from anomaly_cli.scoring.measure import Scorer, choose_roi
from anomaly_cli.scoring.parallel import Progress
from anomaly_cli.statistics.bootstrap import DRAWS, PIXEL_DRAWS, Counts, bootstrap, proportion
from anomaly_cli.statistics.image_metrics import ImageMetrics, image_metrics, precision_at
from anomaly_cli.statistics.interval import Interval
from anomaly_cli.statistics.pixel_metrics import Map, Mask, PixelCurves, PixelMetrics
from anomaly_cli.tables.labels import FOLDERS, label_paths
from anomaly_cli.tables.score_table import ReportTable

PRECISION_AT = (10, 100, 1_000)  # ranks
MANY = 20_000  # images; above this a tenth of the draws suffices
SHARES = ("precision", "recall", "false_alarms")  # in a `Confusion`

Scores = NDArray[np.float64]

Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Confusion:
    """Confusion matrix of flags and labels: counts of readable labelled images.

    Attributes:
        precision: fraction of flagged images that are anomalous; None if none is flagged.
        recall: fraction of anomalous images that are flagged.
        false_alarms: fraction of normal images that are flagged (false-positive rate).
    """

    flagged_anomalous: int
    flagged_normal: int
    missed_anomalous: int
    passed_normal: int
    precision: Interval | None
    recall: Interval
    false_alarms: Interval

    @classmethod
    def count(cls, anomalous: Flags, flagged: Flags) -> Self:
        """Count (N,) labels and flags; both labels must occur. The intervals are exact."""
        hits, alarms = int((flagged & anomalous).sum()), int((flagged & ~anomalous).sum())
        positives, negatives = int(anomalous.sum()), int((~anomalous).sum())
        return cls(
            hits,
            alarms,
            positives - hits,
            negatives - alarms,
            precision=proportion(hits, hits + alarms) if hits + alarms else None,
            recall=proportion(hits, positives),
            false_alarms=proportion(alarms, negatives),
        )


@dataclass(frozen=True)
class Evaluation:
    """Figures of a table against labels.

    Attributes:
        table: its file.
        normal: number of readable images labelled normal.
        anomalous: number of readable images labelled anomalous.
        unreadable: number of files without a score, labelled or not; excluded from every figure.
        unlabelled: number of readable images without a label; excluded from every figure.
        unused: number of labels whose file is not in the table.
        figures: by name; those of the images, then, with masks, those of the maps.
        confusion: of the flags in the table.
        without_mask: number of anomalous images without a mask or with an empty one, excluded from the figures of the
            maps; None without masks.
    """

    table: str
    normal: int
    anomalous: int
    unreadable: int
    unlabelled: int
    unused: int
    figures: dict[str, Interval]
    confusion: Confusion
    without_mask: int | None

    def to_json(self) -> bytes:
        """Serialise as one JSON object."""
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
    roi: Path | None = None,
    curves: Path | None = None,
    device: str = "auto",
    progress: Progress,
) -> Evaluation:
    """Compare a table with labels.

    Args:
        table_path: of `score` or `audit`, in any format.
        labels: file with `path` and `label`, or `folders`.
        masks: folder of masks; the maps are computed again.
        model_path: for the maps only.
        roi: likewise, where it is not that of the model; what is ignored counts as normal and calm.
        curves: file of the plots.
        device: for the maps only.
        progress: called after each map.

    Raises:
        InputError: table, labels or masks cannot be read, or only one class has readable images.
        OutputError: `curves` cannot be written.
    """
    if curves is not None:
        check_curves(curves)
        check_writable(curves)
    labelled = _LabelledScores.read(table_path, labels)
    anomalous = labelled.anomalous
    figures, without_mask = image_figures(anomalous, labelled.scores), None
    if masks is not None:
        located, without_mask = _pixel_figures(labelled, masks, model_path, roi, device, progress)
        figures |= located
    if curves is not None:
        draw_curves(anomalous, labelled.scores, labelled.flagged, curves)
    return Evaluation(
        table=os.fspath(table_path),
        normal=int((~anomalous).sum()),
        anomalous=int(anomalous.sum()),
        unreadable=labelled.unreadable,
        unlabelled=labelled.unlabelled,
        unused=labelled.unused,
        figures=figures,
        confusion=Confusion.count(anomalous, labelled.flagged),
        without_mask=without_mask,
    )


@dataclass(frozen=True)
class _LabelledScores:
    """The N readable labelled images of a table, and the number of rows and labels left out."""

    paths: list[str]
    anomalous: Flags
    scores: Scores
    flagged: Flags
    unreadable: int
    unlabelled: int
    unused: int

    @classmethod
    def read(cls, table_path: Path, labels: str) -> Self:
        """Join a table with its labels; both classes occur."""
        table = ReportTable.read(table_path)
        paths = [str(path) for path in table.column("path")]
        matched = label_paths(labels, [*paths, *(path for path, _ in table.unreadable)])
        chosen = [i for i, path in enumerate(paths) if path in matched.anomalous]
        anomalous = np.array([matched.anomalous[paths[i]] for i in chosen], bool)
        if not chosen:
            raise InputError(f"{labels}: it labels no file of the table that can be read")
        if anomalous.all() or not anomalous.any():
            raise InputError(_one_class(labels, bool(anomalous.all())))
        return cls(
            paths=[paths[i] for i in chosen],
            anomalous=anomalous,
            scores=np.array(table.column("score"), np.float64)[chosen],
            flagged=np.array(table.column("flagged"), bool)[chosen],
            unreadable=len(table.unreadable),
            unlabelled=len(set(matched.unlabelled) & set(paths)),
            unused=matched.unused,
        )


def _one_class(labels: str, all_anomalous: bool) -> str:
    rule = " (a folder called good or normal holds normal images)" if labels == FOLDERS else ""
    missing, present = ("normal", "anomalous") if all_anomalous else ("anomalous", "normal")
    return f"{labels}: no readable image of the table is labelled {missing}, all are {present}{rule}"


def image_figures(anomalous: Flags, scores: Scores) -> dict[str, Interval]:
    """Compute the figures of a ranking of (N,) images with their intervals; both classes must occur."""
    depths = [k for k in PRECISION_AT if 2 * k <= len(scores)]

    def measure(counts: Counts) -> list[float]:
        drawn_labels, drawn_scores = np.repeat(anomalous, counts), np.repeat(scores, counts)
        at = [precision_at(drawn_labels, drawn_scores, k) for k in depths]
        return [*image_metrics(drawn_labels, drawn_scores), *at]

    names = [*ImageMetrics._fields, *(f"precision_at_{k}" for k in depths)]
    draws = DRAWS if len(scores) <= MANY else DRAWS // 10
    return dict(zip(names, bootstrap(measure, anomalous, draws), strict=True))


def _pixel_figures(
    labelled: _LabelledScores, masks: Path, model_path: Path, roi: Path | None, device: str, progress: Progress
) -> tuple[dict[str, Interval], int]:
    """Compute the figures of all maps with ground truth; also count the anomalous images without a mask."""
    paths, anomalous = labelled.paths, labelled.anomalous
    files = find_masks(masks)
    known = [mask_of(Path(path), files) if positive else None for path, positive in zip(paths, anomalous, strict=True)]
    if not any(known):
        raise InputError(f"{masks}: no mask is called like an anomalous image, such as {_example(paths, anomalous)}")
    if any(mask and os.path.realpath(mask) == os.path.realpath(path) for mask, path in zip(known, paths, strict=True)):
        raise InputError(f"{masks} holds the images themselves, not masks")
    chosen = choose_device(device)
    model = load_model(model_path, chosen)
    scorer = Scorer(model, [chosen], roi=choose_roi(model, roi))
    evaluated = [i for i, mask in enumerate(known) if mask or not anomalous[i]]
    results = scorer.measure([path_of(paths[i]) for i in evaluated])
    used: list[int] = []

    def pairs() -> Iterator[tuple[Map, Mask]]:
        for done, (i, result) in enumerate(zip(evaluated, results, strict=True), start=1):
            if isinstance(result, UnreadableImageError):
                raise InputError(f"{paths[i]} cannot be read any more: {result.reason}")
            mask = read_mask(known[i], result.height, result.width)
            if result.inspected is not None:
                mask &= resize_mask(result.inspected, *mask.shape)
            if mask.any() or not anomalous[i]:
                used.append(i)
                yield resize_map(result.anomaly_map, *mask.shape), mask
            progress("locating", done, len(evaluated))

    curves = PixelCurves(pairs())
    labels = anomalous[used]
    if not labels.any():
        raise InputError(f"{masks}: every mask is black")
    drawn = itertools.count(1)

    def measure(counts: Counts) -> PixelMetrics:
        progress("resampling", min(next(drawn), PIXEL_DRAWS), PIXEL_DRAWS)
        return curves.measure(counts)

    figures = dict(zip(PixelMetrics._fields, bootstrap(measure, labels, PIXEL_DRAWS), strict=True))
    return figures, len(paths) - len(used)


def _example(paths: list[str], anomalous: Flags) -> str:
    path = Path(next(path for path, positive in zip(paths, anomalous, strict=True) if positive))
    return f"{path.parent.name}/{path.stem}{MASK_SUFFIX}.png"


def write_evaluation(evaluation: Evaluation, out: Path | None) -> None:
    """Write the evaluation as JSON; to stdout if `out` is None.

    Raises:
        OutputError: `out` cannot be written.
        BrokenPipeError: stdout was closed by its reader.
    """
    write_bytes(evaluation.to_json(), out)
