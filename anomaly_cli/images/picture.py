"""Large pictures, read tile by tile at a resolution of their own."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from anomaly_cli.images.network_size import SIZE_STEP

Pixels = NDArray[np.uint8]


def picture_size(height: int, width: int, scale: float) -> tuple[int, int]:
    """Choose the size at which a file is read in tiles: `scale` times its own, in multiples of `SIZE_STEP`."""
    rows, columns = (max(1, round(side * scale / SIZE_STEP)) * SIZE_STEP for side in (height, width))
    return rows, columns


@dataclass(frozen=True)
class Picture:
    """An image that is larger than what the network sees at once.

    Attributes:
        pixels: (H, W, 3) RGB, or (H, W) grey, as large as the file or as the whole, whichever is smaller.
        rows: height of the whole, multiple of `SIZE_STEP`.
        columns: its width, likewise.
        inspected: (h, w) region of interest, of any resolution; None for all of it.
        fill: colour of ignored pixels.
    """

    pixels: Pixels
    rows: int
    columns: int
    inspected: NDArray[np.bool_] | None = None
    fill: tuple[int, int, int] = (0, 0, 0)

    def read(self, top: int, left: int, height: int, width: int) -> Pixels:
        """Read a part: (height, width, 3) RGB, ignored pixels in the colour `fill`."""
        part = _resized(self.pixels, (self.rows, self.columns), (top, left, height, width))
        if part.ndim == 2:
            part = np.repeat(part[..., None], 3, axis=2)
        if self.inspected is None:
            return part
        shares = _resized(self._mask, (self.rows, self.columns), (top, left, height, width))
        return np.where(shares[..., None] >= 128, part, np.array(self.fill, np.uint8))

    def inspected_cells(self, step: int) -> NDArray[np.bool_] | None:
        """Say which cells of `step` pixels are inspected: half of them is, or, where no cell is, as much as of any."""
        if self.inspected is None:
            return None
        size = (self.columns // step, self.rows // step)
        shares = np.asarray(Image.fromarray(self._mask).resize(size, Image.Resampling.BOX))
        cells: NDArray[np.bool_] = shares >= min(128, shares.max())
        return cells

    @cached_property
    def _mask(self) -> Pixels:
        """(h, w), 255 where inspected."""
        return np.where(self.inspected, np.uint8(255), np.uint8(0))  # type: ignore[arg-type]


def _resized(values: Pixels, whole: tuple[int, int], part: tuple[int, int, int, int]) -> Pixels:
    """Cut a part, given in pixels of the whole, out of an array of another resolution."""
    top, left, height, width = part
    H, W = values.shape[:2]
    if whole == (H, W):
        return np.array(values[top : top + height, left : left + width])
    down, right = H / whole[0], W / whole[1]
    box = (left * right, top * down, (left + width) * right, (top + height) * down)
    # Only what the part needs becomes a Pillow image: of the whole it would be a copy.
    x, y = int(box[0]), int(box[1])
    cut = np.ascontiguousarray(values[y : int(np.ceil(box[3])), x : int(np.ceil(box[2]))])
    box = (box[0] - x, box[1] - y, min(box[2] - x, cut.shape[1]), min(box[3] - y, cut.shape[0]))
    return np.array(Image.fromarray(cut).resize((width, height), Image.Resampling.BICUBIC, box))
