"""Score the training images of a detector, each by the detector of its fold: which of them are outliers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from anomaly_cli.errors import UnreadableImageError
from anomaly_cli.scoring.measure import Measured, measure_image
from anomaly_cli.scoring.parallel import parallel_map
from anomaly_cli.scoring.rows import make_row
from anomaly_cli.tables.row import Row
from anomaly_cli.training.fit import TrainedDetector
from anomaly_cli.training.run import TrainingContext


def score_normals(trained: TrainedDetector, run: TrainingContext) -> Iterator[Row]:
    """Score every normal image by the detector that has not seen it.

    Outliers are flagged (`Calibration.outliers`). There are no q-values, which would mean nothing for images that set
    the unit themselves.

    Args:
        trained: with the detectors of its folds.
        run: the context it was trained in.

    Yields:
        One row for each image: first the readable ones in path order, then the others.
    """
    numbered = list(zip(trained.folds.tolist(), trained.normals.paths, strict=True))

    def measure(item: tuple[int, Path]) -> Measured | UnreadableImageError:
        fold, path = item
        try:
            image = run.load(path)
        except UnreadableImageError as error:
            return error
        detector = trained.fold_detectors[fold]
        return measure_image(detector, trained.calibration, trained.map_scale, image, workers=run.workers)

    results = parallel_map(measure, numbered, run.workers if run.config.smallest_defect is None else 1)
    for done, ((_, path), result) in enumerate(zip(numbered, results, strict=True), start=1):
        row = make_row(path, result, trained.calibration)
        if isinstance(result, Measured):
            row = replace(row, flagged=bool(trained.calibration.outliers(result.deviations[None])[0]))
        run.progress("scoring the normal images", done, len(numbered))
        yield row
    for path, reason in trained.normals.unreadable:
        yield Row(path=str(path), status="unreadable", reason=reason)
