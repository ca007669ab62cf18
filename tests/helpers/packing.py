"""Pictures in the packed form that the benchmarks and the pretraining read."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def pack(stem: Path, pictures: Sequence[Image.Image], classes: list[str]) -> Path:
    """Write pictures as `stem`.bin and `stem`.npz, the classes by turns, the second half as the test pictures."""
    contents = []
    for picture in pictures:
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=95)
        contents.append(buffer.getvalue())
    count = len(contents)
    stem.with_suffix(".bin").write_bytes(b"".join(contents))
    np.savez(
        stem.with_suffix(".npz"),
        offsets=np.cumsum([0, *map(len, contents)]),
        labels=np.arange(count) % len(classes),
        test=np.arange(count) >= count // 2,
        classes=np.array(classes),
    )
    return stem
