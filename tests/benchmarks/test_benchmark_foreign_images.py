"""The benchmark of other people's files: what counts as agreement with Pillow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from tiff_files import RGB, Layout, tiff_bytes

from benchmarks.robustness.foreign_images import compare


def test_each_file_is_counted_once_and_named_where_the_two_differ(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "same.png")
    Image.fromarray(noise.astype(np.uint16)[:, :, 0]).save(tmp_path / "deep.png")
    (tmp_path / "text.png").write_bytes(b"no picture")
    Image.fromarray(noise).save(tmp_path / "whole.bmp")
    planes = Layout(bits=16, photometric=RGB, planar=True)
    (tmp_path / "planes.tif").write_bytes(tiff_bytes(noise.astype(int) * 257, planes))
    (tmp_path / "floats.tif").write_bytes(
        tiff_bytes((noise / 255).astype("f4"), Layout(bits=32, photometric=RGB, sample_format=3))
    )
    (tmp_path / "ycbcr.tif").write_bytes(tiff_bytes(noise, Layout(bits=8, photometric=6)))

    agreement = compare(sorted(tmp_path.iterdir()))

    assert (agreement.same, agreement.deep, agreement.neither) == (2, 1, 1)
    assert list(agreement.different) == ["planes.tif"]  # Pillow is the one that is wrong
    assert agreement.only_here == ["floats.tif"]
    assert agreement.only_pillow == {"ycbcr.tif": "sound file of a kind that is not supported: 8-bit YCbCr TIFF"}
