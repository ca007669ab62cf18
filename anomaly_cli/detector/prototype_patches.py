"""Small pictures of where prototypes come from: cut from the normal images, stored in the model file."""

from __future__ import annotations

import io
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

Patches = dict[str, list[bytes]]  # scale: one WebP for each prototype

CONTEXT = 6  # cells, side of a patch: the main receptive field of a cell, and enough for a person to place it
PATCH_SIDE = 48  # pixels; a larger patch is reduced to it, or to a little less
IMAGE_SIDE = 64  # pixels of the longer side of a whole image
ENCODING: dict[str, Any] = {"format": "WEBP", "quality": 75, "method": 0}  # higher methods take twice as long for 10 %


def cut_patch(pixels: NDArray[np.uint8], step: int | None, cell: int) -> bytes:
    """Cut the surroundings of a cell from an (h, w, 3) image at network size, as WebP.

    Args:
        pixels: of the image.
        step: from one cell to the next, pixels; None for a pooled scale, whose cell is the image.
        cell: its index, row-major.
    """
    left, top, right, bottom = patch_box(pixels.shape[0], pixels.shape[1], step, cell)
    return encode_patch(pixels[top:bottom, left:right], whole=step is None)


def encode_patch(pixels: NDArray[np.uint8], *, whole: bool = False) -> bytes:
    """Reduce the (h, w, 3) surroundings of a cell, or a whole image, to a small WebP."""
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    if whole:
        picture.thumbnail((IMAGE_SIDE, IMAGE_SIDE), Image.Resampling.BOX)
    else:
        picture = picture.reduce(-(-max(picture.size) // PATCH_SIDE))  # by an integer: twice as fast as to any size
    stream = io.BytesIO()
    picture.save(stream, **ENCODING)
    return stream.getvalue()


def patch_box(height: int, width: int, step: int | None, cell: int) -> tuple[int, int, int, int]:
    """Place the surroundings of a cell in an image at network size.

    Args:
        height: of the image, pixels.
        width: likewise.
        step: as `cut_patch` takes it.
        cell: its index, row-major.

    Returns:
        Left, top, right and bottom of a square of `CONTEXT` cells around the cell, shifted into the image at its
        borders, and clipped where the image is smaller.
    """
    if step is None:
        return 0, 0, width, height
    row, column = divmod(cell, -(-width // step))
    left, right = _span(column, step, width)
    top, bottom = _span(row, step, height)
    return left, top, right, bottom


def _span(place: int, step: int, length: int) -> tuple[int, int]:
    side = min(CONTEXT * step, length)
    start = (2 * place + 1) * step // 2 - side // 2
    start = min(max(start, 0), length - side)
    return start, start + side


def encode_patches(pictures: list[bytes]) -> tuple[Tensor, Tensor]:
    """Concatenate pictures for a model file: (B,) uint8, and the (K,) int64 end of each."""
    content = np.frombuffer(b"".join(pictures), np.uint8).copy()
    return torch.from_numpy(content), torch.tensor([len(each) for each in pictures]).cumsum(0)


def decode_patches(content: Tensor, ends: Tensor, count: int) -> list[bytes]:
    """Split the bytes of `encode_patches` into pictures.

    Raises:
        ValueError: these are not `count` pictures.
    """
    places = [0, *ends.tolist()]
    steady = all(start < end for start, end in pairwise(places))
    if content.dtype != torch.uint8 or len(places) != count + 1 or not steady or places[-1] != len(content):
        raise ValueError(f"{len(ends)} thumbnails in {len(content)} bytes, for {count} prototypes")
    joined = content.numpy().tobytes()
    return [joined[start:end] for start, end in pairwise(places)]
