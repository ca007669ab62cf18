"""Cut the patches around the origins of prototypes out of the normal images."""

from __future__ import annotations

from pathlib import Path

from anomaly_cli.detector.anomaly_detector import AnomalyDetector
from anomaly_cli.detector.prototype_patches import Patches, cut_patch, encode_patch, patch_box
from anomaly_cli.detector.scales import is_local
from anomaly_cli.images.decode import LoadedImage
from anomaly_cli.scoring.parallel import parallel_map
from anomaly_cli.training.cell_samples import Origin
from anomaly_cli.training.cross_fitting import load_again
from anomaly_cli.training.run import TrainingContext


def cut_patches(
    detector: AnomalyDetector, origins: dict[str, list[Origin]], paths: list[Path], run: TrainingContext
) -> Patches:
    """Cut a patch around every origin.

    Args:
        detector: whose prototypes they are.
        origins: by scale; their image indices are those of `paths`.
        paths: of the images; those with an origin are read once more.
        run: size of the images, and progress.

    Raises:
        InputError: an image was changed or removed during training.
    """
    wanted: dict[int, list[tuple[str, int, int]]] = {}  # of an image: scale, number of the prototype, cell
    for name, places in origins.items():
        for i, origin in enumerate(places):
            wanted.setdefault(origin.image, []).append((name, i, origin.cell))
    images = sorted(wanted)

    def cut(image: int) -> list[bytes]:
        loaded = load_again(paths[image], run)
        return [_cut(detector, loaded, name, cell) for name, _, cell in wanted[image]]

    patches = {name: [b""] * len(places) for name, places in origins.items()}
    workers = run.workers if run.config.smallest_defect is None else 1
    for done, (image, pictures) in enumerate(zip(images, parallel_map(cut, images, workers), strict=True), start=1):
        for (name, i, _), picture in zip(wanted[image], pictures, strict=True):
            patches[name][i] = picture
        run.progress("keeping thumbnails", done, len(images))
    return patches


def _cut(detector: AnomalyDetector, image: LoadedImage, name: str, cell: int) -> bytes:
    if image.picture is None or not is_local(name):
        return cut_patch(image.pixels, detector.cell_step(name, *image.pixels.shape[:2]), cell)
    rows, columns = image.picture.rows, image.picture.columns
    left, top, right, bottom = patch_box(rows, columns, detector.cell_step(name, rows, columns), cell)
    return encode_patch(image.picture.read(top, left, bottom - top, right - left))
