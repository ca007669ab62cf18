"""Leave changing time stamps out by `--roi`: `python -m benchmarks.accuracy.time_stamps --data DIR/elpv_mono …`.

Every image of a set, normal or anomalous, gets a random time stamp on a random ground in its lower left corner. Four
runs a set: without stamps, without stamps but with the region of interest that leaves their place out, with stamps,
and with stamps and that region. Images are brought to network size first, so that all runs read the same pixels.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from anomaly_cli.config import DetectorConfig
from anomaly_cli.errors import UnreadableImageError
from anomaly_cli.images.roi import open_roi
from anomaly_cli.scoring.measure import Scorer
from anomaly_cli.statistics.image_metrics import image_metrics
from anomaly_cli.training import train as training
from benchmarks.accuracy.calibration import small_copies
from benchmarks.accuracy.datasets import AnomalySet, subsample
from benchmarks.jobs import Row, print_means, run_table, set_options

STAMP_WIDTH, STAMP_HEIGHT = 0.6, 0.1  # of the image
RUNS = {"plain": (False, False), "plain, roi": (False, True), "stamps": (True, False), "stamps, roi": (True, True)}


@dataclass(frozen=True)
class Job:
    """One run on a set: whether its images have time stamps, and whether a region of interest leaves them out."""

    data: AnomalySet
    run: str
    seed: int


def stamp(path: Path, seed: int) -> None:
    """Draw a random time stamp into a picture; same seed and file name, same stamp."""
    rng = np.random.default_rng([seed, *path.name.encode()])
    with Image.open(path) as image:
        picture = image.convert("RGB")
    left, top, right, bottom = _place(*picture.size)
    ground, ink = (tuple(int(value) for value in rng.integers(0, 256, 3)) for _ in range(2))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((left, top, right - 1, bottom - 1), fill=ground)
    text = "{:02}:{:02}:{:02}.{:03}".format(*(int(rng.integers(limit)) for limit in (24, 60, 60, 1000)))
    font = ImageFont.load_default(0.8 * (bottom - top))
    while font.getlength(text) > right - left:
        text = text[:-1]
    draw.text((left, (top + bottom) / 2), text, ink, font, "lm")
    picture.save(path, compress_level=1)


def _place(width: int, height: int) -> tuple[int, int, int, int]:
    """Place the stamp: left, top, right, bottom."""
    return 0, round((1 - STAMP_HEIGHT) * height), round(STAMP_WIDTH * width), height


def write_masks(paths: list[Path], folder: Path) -> None:
    """Write a mask a picture, black where its stamp is or would be."""
    folder.mkdir(exist_ok=True)
    for path in paths:
        with Image.open(path) as image:
            mask = Image.new("L", image.size, 255)
        left, top, right, bottom = _place(*mask.size)
        mask.paste(0, (left, top, right, bottom))
        mask.save(folder / path.name)


def measure(job: Job) -> list[Row]:
    """Train and test once."""
    config = DetectorConfig(seed=job.seed)
    stamped, inspected = RUNS[job.run]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        normal = small_copies(job.data.normal, folder / "normal", config.image_size)
        tested = small_copies([image.path for image in job.data.test], folder / "tested", config.image_size)
        for path in [*normal, *tested]:
            if stamped:
                stamp(path, job.seed)
        masks = folder / "masks"
        for part in (normal, tested):
            (masks / part[0].parent.name).parent.mkdir(exist_ok=True)
            write_masks(part, masks / part[0].parent.name)
        roi = masks if inspected else None
        model = training.train(normal, folder / "m.safetensors", config, roi=roi, progress=lambda *_: None).model
        region = None if roi is None else open_roi(roi)
        scorer = Scorer(model, [next(model.detector.buffers()).device], roi=region)
        scores = []
        for result in scorer.measure(tested):
            if isinstance(result, UnreadableImageError):
                raise result
            scores.append(float(model.calibration.scores(result.deviations[None])[0][0]))
    labels = [image.anomalous for image in job.data.test]
    row: Row = {"set": job.data.name, "seed": job.seed, "run": job.run, "normals": len(normal), "tested": len(labels)}
    return [row | image_metrics(labels, scores)._asdict()]


def jobs_of(args: argparse.Namespace, sets: list[AnomalySet]) -> Iterator[Job]:
    """Make one job a set, seed and run."""
    for data in sets:
        for seed in range(args.seeds):
            drawn = subsample(data, args.max_train, args.max_test, seed)
            for run in RUNS:
                yield Job(drawn, run, seed)


def main() -> None:
    """Measure and print the means."""
    options = set_options(__doc__)
    options.set_defaults(seeds=1, max_train=100, max_test=80)
    results = run_table(options.parse_args(), measure, jobs_of)
    print_means(results, ["run"])


if __name__ == "__main__":
    main()
