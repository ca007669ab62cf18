"""Find small defects in large pictures: `python -m benchmarks.accuracy.small_defects --out FILE`.

For each kind of picture and each size of defect, one model with `--smallest-defect` of that size and one without it.
Image AUROC, seconds a megapixel of the files, and peak memory of the process that trained and scored.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from anomaly_cli.config import DetectorConfig
from anomaly_cli.detector.checkpoint import load_model
from anomaly_cli.errors import UnreadableImageError
from anomaly_cli.scoring.measure import Scorer
from anomaly_cli.statistics.image_metrics import image_metrics
from anomaly_cli.training import train as training
from benchmarks.accuracy.small_defect_pictures import PICTURES, write_pictures
from benchmarks.jobs import Row, measure_all, peak_mb

SIZES = (6, 12, 24)  # pixels


@dataclass(frozen=True)
class Job:
    """One kind of pictures with defects of one size, and whether the model is told the size."""

    kind: str
    size: int
    told: bool
    side: int
    normal: int
    tested: int


def draw(job: Job, folder: Path) -> list[list[Path]]:
    """Draw pictures to train on, and normal and anomalous ones to test, in a process whose memory does not count."""
    parts = [("normal", job.normal, 0, 0), ("good", job.tested, 1, 0), ("bad", job.tested, 1 + job.size, job.size)]
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        drawn = [
            pool.submit(write_pictures, folder / name, job.kind, count, job.side, seed, size)
            for name, count, seed, size in parts
        ]
        return [each.result() for each in drawn]


def measure(job: Job) -> list[Row]:
    """Train, and score normal and anomalous pictures."""
    config = DetectorConfig(smallest_defect=job.size if job.told else None)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        normal, good, bad = draw(job, folder)
        start = time.perf_counter()
        training.train(normal, folder / "m.safetensors", config, progress=lambda *_: None)
        trained = time.perf_counter()
        model = load_model(folder / "m.safetensors")
        scorer = Scorer(model, [next(model.detector.buffers()).device])
        scores = []
        for result in scorer.measure([*good, *bad]):
            if isinstance(result, UnreadableImageError):
                raise result
            scores.append(float(model.calibration.scores(result.deviations[None])[0][0]))
        scored = time.perf_counter()
    megapixels = 2 * job.tested * job.side**2 / 1e6
    labels = [False] * len(good) + [True] * len(bad)
    row: Row = {"pictures": job.kind, "defect_px": job.size, "smallest_defect": job.size if job.told else 0}
    row |= {"side": job.side, "normals": job.normal, "tested": len(labels)}
    row |= {"image_auroc": image_metrics(labels, scores).image_auroc}
    row |= {"train_s": trained - start, "s_a_megapixel": (scored - trained) / megapixels, "peak_mb": peak_mb()}
    return [row]


def main() -> None:
    """Measure and print the table."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--out", type=Path, required=True, help="CSV")
    options.add_argument("--side", type=int, default=3000, help="pixels")
    options.add_argument("--normal", type=int, default=16, help="pictures to train on")
    options.add_argument("--tested", type=int, default=12, help="pictures to score, with and without defect each")
    options.add_argument("--pictures", nargs="+", choices=PICTURES, default=list(PICTURES))
    options.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="of the defects, pixels")
    args = options.parse_args()
    jobs = [
        Job(kind, size, told, args.side, args.normal, args.tested)
        for told in (True, False)
        for size in sorted(args.sizes, reverse=True)
        for kind in args.pictures
    ]
    print(measure_all(measure, jobs, args.out).round(3).to_string(index=False))


if __name__ == "__main__":
    main()
