"""Cut the patches around the origins of prototypes out of the normal images."""

from __future__ import annotations

from pathlib import Path

from anomaly_cli.detector.prototype_patches import Patches, cut_patch
from anomaly_cli.scoring.parallel import parallel_map
from anomaly_cli.training.cell_samples import Origin
from anomaly_cli.training.cross_fitting import load_again
from anomaly_cli.training.run import TrainingContext


def cut_patches(origins: dict[str, list[Origin]], paths: list[Path], run: TrainingContext) -> Patches:
    """Cut a patch around every origin.

    Args:
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
        pixels = load_again(paths[image], run).pixels
        return [cut_patch(pixels, name, cell) for name, _, cell in wanted[image]]

    patches = {name: [b""] * len(places) for name, places in origins.items()}
    for done, (image, pictures) in enumerate(zip(images, parallel_map(cut, images, run.workers), strict=True), start=1):
        for (name, i, _), picture in zip(wanted[image], pictures, strict=True):
            patches[name][i] = picture
        run.progress("keeping thumbnails", done, len(images))
    return patches
