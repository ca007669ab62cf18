"""The region of interest in a model file: one mask as PNG of one bit a pixel."""

from __future__ import annotations

import io

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

Mask = NDArray[np.bool_]


def encode_mask(mask: Mask) -> Tensor:
    """Pack an (H, W) mask: (B,) uint8."""
    stream = io.BytesIO()
    Image.fromarray(mask).save(stream, "PNG")
    return torch.frombuffer(bytearray(stream.getvalue()), dtype=torch.uint8)


def decode_mask(content: Tensor) -> Mask:
    """Undo `encode_mask`.

    Raises:
        ValueError: it is no mask, or true nowhere.
    """
    try:
        with Image.open(io.BytesIO(content.numpy().tobytes()), formats=["PNG"]) as image:
            values = np.array(image)
    except (OSError, SyntaxError, TypeError) as error:
        raise ValueError("no region of interest") from error
    if values.dtype != bool or not values.any():
        raise ValueError("no region of interest")
    mask: Mask = values != 0  # Pillow's own true is a byte of 255
    return mask
