"""Small sets for the tests of the benchmarks: textures in MVTec layout, the anomalous ones with a white square."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.accuracy.textures import write_textures

SIDE = 64  # pixels


def write_texture_set(folder: Path, *, kinds: tuple[str, ...] = ("square",), each: int = 6) -> Path:
    """Write 9 normal images to train on, 6 to test on, and `each` anomalous ones a kind with masks."""
    write_textures(folder / "train" / "good", 9, SIDE, seed=0)  # the tenth would have a blot
    write_textures(folder / "test" / "good", 6, SIDE, seed=1)
    for number, kind in enumerate(kinds):
        for i, path in enumerate(write_textures(folder / "test" / kind, each, SIDE, seed=2 + number)):
            mask = np.zeros((SIDE, SIDE), np.uint8)
            mask[8 + 4 * (i % 6) : 28 + 4 * (i % 6), 8 + 20 * number : 28 + 20 * number] = 255
            pixels = np.asarray(Image.open(path)).copy()
            pixels[mask > 0] = 255 if number == 0 else 0
            Image.fromarray(pixels).save(path, quality=95)
            truth = folder / "ground_truth" / kind / f"{path.stem}_mask.png"
            truth.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(truth)
    return folder
