"""Read the kinds of TIFF that Pillow lacks or reads wrongly; libtiff, through Pillow, only undoes the compression."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from itertools import accumulate
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin

from anomaly_cli.errors import UnreadableImageError
from anomaly_cli.images.gray_levels import float_range
from anomaly_cli.images.tiff_layout import (
    BLACK_IS_ZERO,
    BYTEWISE,
    CMYK,
    FLOAT,
    PALETTE,
    RAW,
    RGB,
    SIGNED,
    UNSIGNED,
    WHITE_IS_ZERO,
    TiffLayout,
)

GROUP_BYTES = 2**26  # of unpacked strips or tiles that are read at once
MAX_PACKED = 4  # times the bytes that it unpacks to: no compression makes a strip longer
ROWS_AT_ONCE = 256  # whose samples become 8-bit colours
FLOAT_BITS = (16, 32, 64)
PREDICTED_BITS = (8, 16, 32, 64)
REVERSED_BITS = np.packbits(np.unpackbits(np.arange(256, dtype=np.uint8)).reshape(256, 8)[:, ::-1], axis=1)[:, 0]

Samples = NDArray[Any]
Bytes = NDArray[np.uint8]


def can_read(layout: TiffLayout) -> bool:
    """Say whether `read_picture` knows this kind."""
    if layout.photometric not in (WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK):
        return False
    if layout.compression not in BYTEWISE or layout.bits > 64:
        return False
    if layout.photometric == WHITE_IS_ZERO and layout.alpha == 1:  # is what is black or what is 0 multiplied?
        return False
    if layout.samples != layout.colour_samples + len(layout.extra):
        return False
    if layout.photometric == PALETTE and (layout.sample_format != UNSIGNED or layout.bits > 16):
        return False
    if layout.sample_format == FLOAT:
        return layout.bits in FLOAT_BITS and layout.predictor in (1, 2, 3)
    return layout.sample_format in (UNSIGNED, SIGNED) and (
        layout.predictor == 1 or (layout.predictor == 2 and layout.bits in PREDICTED_BITS)
    )


def read_picture(stream: BinaryIO, layout: TiffLayout) -> Image.Image:
    """Read a picture of a kind that `can_read` knows, not yet turned upright.

    Returns:
        Gray of more than 8 bit as "I;16", "I" or "F" with the file's own values, where `info` may hold "white" (the
        value that is white, if it is not that of the mode) and "negative" (white is zero); other pictures in 8 bit.

    Raises:
        UnreadableImageError: the file is cut short or makes no sense.
    """
    samples = _samples(stream, layout)
    if layout.photometric in (WHITE_IS_ZERO, BLACK_IS_ZERO) and layout.bits > 8:
        return _deep_gray(samples, layout)
    colours = layout.colour_samples
    if layout.photometric == PALETTE:
        picture = Image.fromarray(_palette_colours(samples[:, :, 0], layout))
    else:
        picture = _colours(samples[:, :, :colours], layout)
    return _with_alpha(picture, samples[:, :, colours], layout) if layout.alpha else picture


# --- From the file to samples ---


def _samples(stream: BinaryIO, layout: TiffLayout) -> Samples:
    """Read (H, W, S) samples as numbers of this machine."""
    H, W, S = layout.height, layout.width, layout.samples
    chunk_height, chunk_width = layout.chunk
    depth = 1 if layout.planar else S  # samples in a pixel of a chunk
    down, across = -(-H // chunk_height), -(-W // chunk_width)
    needed = down * across * (S if layout.planar else 1)
    row_bytes = -(-chunk_width * depth * layout.bits // 8)
    if len(layout.offsets) < needed:
        raise UnreadableImageError(f"cannot be decoded: {needed - len(layout.offsets)} strips or tiles are missing")
    samples = np.zeros((H, W, S), _sample_type(layout))
    for plane in range(S if layout.planar else 1):
        band = slice(plane, plane + 1) if layout.planar else slice(None)
        first = plane * down * across
        heights = [chunk_height if layout.tiled else min(chunk_height, H - top) for top in range(0, H, chunk_height)]
        sizes = [height for height in heights for _ in range(across)]
        for i, rows in enumerate(_chunks(stream, layout, first, sizes, row_bytes)):
            top, left = i // across * chunk_height, i % across * chunk_width
            part = _numbers(rows, layout, chunk_width, depth)
            samples[top : top + chunk_height, left : left + chunk_width, band] = part[: H - top, : W - left]
    return samples


def _chunks(stream: BinaryIO, layout: TiffLayout, first: int, heights: list[int], row_bytes: int) -> Iterator[Bytes]:
    """Yield the bytes of each strip or tile from the `first` on, (its height, row_bytes)."""
    at_once = max(1, GROUP_BYTES // max(1, heights[0] * row_bytes))
    for start in range(0, len(heights), at_once):
        group = heights[start : start + at_once]
        packed = [_packed(stream, layout, first + start + i, height * row_bytes) for i, height in enumerate(group)]
        if layout.compression == RAW:
            rows = np.frombuffer(b"".join(packed), np.uint8).reshape(-1, row_bytes)
            rows = REVERSED_BITS[rows] if layout.fill_order == 2 else rows
        else:
            rows = _unpacked(packed, layout, group, row_bytes)
        ends = np.cumsum(group)[:-1]
        yield from np.split(rows, ends)


def _packed(stream: BinaryIO, layout: TiffLayout, index: int, unpacked_size: int) -> bytes:
    """Read a strip or tile as it lies in the file."""
    offset = layout.offsets[index]
    if layout.compression == RAW:
        size = unpacked_size
    elif index < len(layout.counts):
        size = min(layout.counts[index], MAX_PACKED * unpacked_size + 1024)
    else:
        raise UnreadableImageError("cannot be decoded: bad TIFF header (no sizes of strips)")
    length = stream.seek(0, io.SEEK_END)
    if offset + size > length:
        raise UnreadableImageError(f"truncated: {offset + size - length} bytes missing")
    stream.seek(offset)
    return stream.read(size)


def _unpacked(packed: list[bytes], layout: TiffLayout, heights: list[int], row_bytes: int) -> Bytes:
    """Let libtiff undo the compression: it is told of a gray picture that has one pixel a byte.

    Returns:
        (sum of heights, row_bytes).
    """
    counts = [len(part) for part in packed]
    offsets = list(accumulate(counts, initial=8))
    end = offsets.pop()
    tags = [
        (256, [row_bytes]), (257, [sum(heights)]), (258, [8]), (259, [layout.compression]), (262, [1]),
        (266, [layout.fill_order]), (273, offsets), (277, [1]), (278, [heights[0]]), (279, counts),
    ]  # fmt: skip
    directory = struct.pack("<H", len(tags))
    behind, tail = end + 2 + 12 * len(tags) + 4, b""
    for tag, values in tags:
        data = struct.pack(f"<{len(values)}I", *values)
        if len(values) > 1:
            data, tail = struct.pack("<I", behind + len(tail)), tail + data
        directory += struct.pack("<HHI", tag, 4, len(values)) + data
    file = b"".join((b"II*\0", struct.pack("<I", end), *packed, directory, bytes(4), tail))
    with TiffImagePlugin.TiffImageFile(io.BytesIO(file)) as gray:
        gray.load()
        rows: Bytes = np.asarray(gray)
    return rows


def _sample_type(layout: TiffLayout) -> np.dtype[Any]:
    size = next(size for size in (1, 2, 4, 8) if 8 * size >= layout.bits)
    return np.dtype(f"{'f' if layout.sample_format == FLOAT else 'i' if layout.sample_format == SIGNED else 'u'}{size}")


def _numbers(rows: Bytes, layout: TiffLayout, width: int, depth: int) -> Samples:
    """Turn the bytes of a strip or tile, (h, row_bytes), into (h, width, depth) samples."""
    h, bits, kind = len(rows), layout.bits, _sample_type(layout)
    size = bits // 8
    order: Literal["<", ">"] = "<" if layout.order == "<" else ">"
    if layout.predictor == 3:
        order = ">"
        by_rank = np.cumsum(rows.reshape(h, -1, depth), axis=1, dtype=np.uint8).reshape(h, size, width * depth)
        rows = np.ascontiguousarray(by_rank.transpose(0, 2, 1)).reshape(h, -1)
    unsigned = np.dtype(f"u{kind.itemsize}")
    if bits == 8 * kind.itemsize:
        values = np.ascontiguousarray(rows).view(unsigned.newbyteorder(order)).astype(unsigned)
    elif bits % 8 == 0:  # 24, 40, 48 or 56
        parts = rows.reshape(h, -1, size)[:, :, :: -1 if order == "<" else 1]
        values = np.pad(parts, ((0, 0), (0, 0), (kind.itemsize - size, 0))).reshape(h, -1)
        values = values.view(unsigned.newbyteorder(">")).astype(unsigned)
    else:
        values = _bit_fields(rows, bits, width * depth, unsigned)
    values = values.reshape(h, width, depth)
    if layout.predictor == 2:
        values = np.cumsum(values, axis=1, dtype=unsigned)
    if layout.sample_format == SIGNED and bits != 8 * kind.itemsize:
        shift = 8 * kind.itemsize - bits
        return (values << shift).view(kind) >> shift
    return values.view(kind)


def _bit_fields(rows: Bytes, bits: int, count: int, dtype: np.dtype[Any]) -> Samples:
    """Cut rows of bytes, (h, row_bytes), into (h, count) numbers that lie there bit after bit."""
    fields = np.unpackbits(rows, axis=1, count=count * bits).reshape(len(rows), count, bits)
    padded = np.pad(fields, ((0, 0), (0, 0), (8 * dtype.itemsize - bits, 0)))
    values: Samples = np.packbits(padded, axis=2).view(dtype.newbyteorder(">")).astype(dtype)
    return values[:, :, 0]


# --- From samples to a picture ---


def _range(values: Samples, layout: TiffLayout) -> tuple[float, float]:
    """Choose the values that are black and white."""
    if layout.sample_format == FLOAT:
        return float_range(values)
    if layout.sample_format == SIGNED:  # as if unsigned; what is below zero is black
        return 0.0, 255.0 if layout.bits <= 8 else 65535.0
    return 0.0, float(2**layout.bits - 1)


def _deep_gray(samples: Samples, layout: TiffLayout) -> Image.Image:
    values = samples[:, :, 0]
    info: dict[str, Any] = {"negative": layout.photometric == WHITE_IS_ZERO}
    if layout.sample_format == UNSIGNED:
        info["white"] = 2**layout.bits - 1
    if layout.alpha:
        values = _on_white(values, samples[:, :, 1], layout)
    if layout.sample_format == FLOAT or layout.bits > 32 or (layout.bits > 16 and layout.sample_format == UNSIGNED):
        limit = float(np.finfo(np.float32).max)
        values = values if values.dtype.itemsize < 8 else np.clip(values, -limit, limit)
        picture = Image.fromarray(values.astype(np.float32))
        if layout.sample_format == SIGNED:
            info["white"] = 65535
    elif layout.sample_format == SIGNED:
        picture = Image.fromarray(values.astype(np.int32))
    else:
        picture = Image.fromarray(np.ascontiguousarray(values))
    picture.info.update(info)
    return picture


def _on_white(values: Samples, alpha: Samples, layout: TiffLayout) -> Samples:
    """Lay gray of any depth on white, in its own values."""
    low, high = _range(values, layout)
    white = low if layout.photometric == WHITE_IS_ZERO else high
    cover = _fractions(alpha, layout)
    gray = values.astype(np.float64)
    flat = (gray * cover if layout.alpha == 2 else gray) + white * (1 - cover)
    return flat.astype(values.dtype) if layout.sample_format == FLOAT else np.rint(flat).astype(values.dtype)


def _fractions(values: Samples, layout: TiffLayout) -> NDArray[np.float64]:
    low, high = _range(values, layout)
    with np.errstate(invalid="ignore"):
        scaled = (values.astype(np.float64) - low) / max(high - low, 1e-300)
    fractions: NDArray[np.float64] = np.nan_to_num(scaled.clip(0, 1))
    return fractions


def _bytes(values: Samples, layout: TiffLayout) -> Bytes:
    """Bring samples of any shape to 8 bit, and CMYK, (H, W, 4), to RGB."""
    low, high = _range(values, layout)
    blocks = []
    for top in range(0, len(values), ROWS_AT_ONCE):
        rows = values[top : top + ROWS_AT_ONCE].astype(np.float64)
        with np.errstate(invalid="ignore"):
            fractions = np.nan_to_num(((rows - low) / max(high - low, 1e-300)).clip(0, 1))
        if layout.photometric == CMYK and values.ndim == 3:
            fractions = (1 - fractions[:, :, :3]) * (1 - fractions[:, :, 3:])
        blocks.append((fractions * 255).round().astype(np.uint8))
    return np.concatenate(blocks)


def _colours(samples: Samples, layout: TiffLayout) -> Image.Image:
    scaled = _bytes(samples, layout)
    if layout.photometric in (RGB, CMYK):
        return Image.fromarray(scaled)
    return Image.fromarray(255 - scaled[:, :, 0] if layout.photometric == WHITE_IS_ZERO else scaled[:, :, 0])


def _palette_colours(indices: Samples, layout: TiffLayout) -> Bytes:
    table = np.array(layout.colours).reshape(3, -1).T  # (K, 3), 16-bit; of some writers 8-bit
    in_bytes: Bytes = (table if table.max() < 256 else (table + 128) // 257).astype(np.uint8)
    return in_bytes[np.minimum(indices, len(in_bytes) - 1)]


def _with_alpha(picture: Image.Image, alpha: Samples, layout: TiffLayout) -> Image.Image:
    cover = _bytes(alpha, layout)
    if layout.alpha == 2:
        picture.putalpha(Image.fromarray(cover))
        return picture
    pixels = np.asarray(picture).astype(np.int16)  # colours are multiplied with alpha already
    white = (255 - cover).astype(np.int16)
    return Image.fromarray(
        np.minimum(pixels + (white if pixels.ndim == 2 else white[:, :, None]), 255).astype(np.uint8)
    )
