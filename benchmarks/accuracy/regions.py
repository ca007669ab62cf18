"""Regions against masks: `python -m benchmarks.accuracy.regions --data DIR/screw DIR/magnetic_tile --out FILE.csv`.

How often the region of the table touches a defect, how many of the defects of an image have a region of the anomaly map
at the limit of normal, and how many such regions a normal image has; also, how many of the defects are found at the
lowest threshold at which a normal image has at most one region in the mean. A region touches a defect if its box
reaches a mask that is dilated by 1/32 of the longer side of the image; a defect is found if a cell of a region lies on
it.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage

from anomaly_cli.errors import UnreadableImageError
from anomaly_cli.review.masks import read_mask, resize_map
from anomaly_cli.scoring.measure import Measured, Scorer
from anomaly_cli.scoring.regions import TOUCHING, peak_region
from anomaly_cli.statistics.pixel_metrics import Mask
from anomaly_cli.training import train as training
from benchmarks.accuracy.quality import known_truth, quiet
from benchmarks.jobs import Row, Training, print_means, run_table, set_options, trainings_of

DILATION = 32  # part of the longer side
THRESHOLDS = np.linspace(0.5, 1.5, 101)  # of maps, in units of the limit of normal
LIMIT = 50  # index of 1 among them


@dataclass
class Counts:
    """Sums over the images of one run.

    Attributes:
        anomalous: number of images with a mask.
        touching: number of these whose region touches a defect.
        heights: largest map value on each defect of images that have more than one.
        false_regions: for each normal image the number of regions at each of `THRESHOLDS`.
    """

    anomalous: int = 0
    touching: int = 0
    heights: list[float] = field(default_factory=list)
    false_regions: list[list[int]] = field(default_factory=list)

    def add(self, measured: Measured, mask: Mask) -> None:
        """Count one image; its (H, W) mask is false everywhere if it is normal."""
        if not mask.any():
            regions = [ndimage.label(measured.anomaly_map >= each, TOUCHING)[1] for each in THRESHOLDS]
            self.false_regions.append(regions)
            return
        self.anomalous += 1
        H, W = mask.shape
        region = peak_region(measured.anomaly_map, 1.0, H, W)
        near = ndimage.maximum_filter(mask, 2 * (max(H, W) // DILATION) + 1)
        self.touching += bool(near[region.y : region.y + region.height, region.x : region.x + region.width].any())
        defects, count = ndimage.label(mask, TOUCHING)
        if count > 1:
            enlarged = resize_map(measured.anomaly_map, H, W)
            self.heights += list(ndimage.maximum(enlarged, defects, range(1, count + 1)))

    @property
    def row(self) -> Row:
        """The figures of the run."""
        false_regions = np.mean(self.false_regions, axis=0)
        too_many = np.flatnonzero(false_regions > 1)
        allowed = THRESHOLDS[too_many[-1] + 1 if len(too_many) else 0]
        heights = np.array(self.heights)
        return {
            "anomalous": self.anomalous,
            "touching": self.touching / self.anomalous,
            "defects": len(heights),
            "recall_at_limit": float((heights >= 1).mean()),
            "false_regions_at_limit": float(false_regions[LIMIT]),
            "threshold_of_one_false": float(allowed),
            "recall_at_one_false": float((heights >= allowed).mean()),
        }


def measure(job: Training) -> list[Row]:
    """Train, find regions and compare them with the masks: one row."""
    with tempfile.TemporaryDirectory() as folder:
        model = training.train(job.data.normal, Path(folder) / "model.safetensors", job.config, progress=quiet).model
    test = known_truth(job.data.test)
    counts = Counts()
    results = Scorer(model, [torch.device("cpu")]).measure([image.path for image in test])
    for image, result in zip(test, results, strict=True):
        if isinstance(result, UnreadableImageError):
            raise result
        counts.add(result, read_mask(image.mask, result.height, result.width))
    row: Row = {"set": job.data.name, "seed": job.config.seed, "normals": len(job.data.normal)}
    return [row | counts.row]


def main() -> None:
    """Measure and print the means."""
    options = set_options(__doc__)
    options.set_defaults(seeds=1, max_train=200, max_test=400)
    args = options.parse_args()
    results = run_table(args, measure, trainings_of)
    for figure in ("touching", "recall_at_limit", "recall_at_one_false"):
        print_means(results.assign(method="ours"), ["method"], figure)


if __name__ == "__main__":
    main()
