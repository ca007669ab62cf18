"""Read the kinds of TIFF that Pillow lacks or reads wrongly; libtiff, through Pillow, only undoes the compression."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin

from anomaly_cli.errors import UnreadableImageError
from anomaly_cli.images.gray_levels import float_range, fractions_between

UNSIGNED, SIGNED, FLOAT = 1, 2, 3
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK = 0, 1, 2, 3, 5
COLOUR_SAMPLES = {WHITE_IS_ZERO: 1, BLACK_IS_ZERO: 1, RGB: 3, PALETTE: 1, CMYK: 4, 6: 3, 8: 3}  # 6 YCbCr, 8 Lab
RAW = 1
BYTEWISE = (RAW, 5, 8, 32773, 32946, 34925, 50000)  # LZW, deflate, PackBits, LZMA, Zstandard: bytes in, bytes out
PREDICTING = (5, 8, 32946, 34925, 50000)  # of which these may hold differences instead of samples
GROUP_BYTES = 2**26  # of unpacked strips or tiles that are read at once
MAX_PACKED = 4  # times the bytes that it unpacks to: no compression makes a strip longer
ROWS_AT_ONCE = 256  # whose samples become 8-bit colours
REVERSED_BITS = np.packbits(np.unpackbits(np.arange(256, dtype=np.uint8)).reshape(256, 8)[:, ::-1], axis=1)[:, 0]

Samples = NDArray[Any]
Bytes = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class TiffLayout:
    """How samples lie in the file: the numbers of the tags."""

    big_endian: bool
    height: int
    width: int
    bits: int  # a sample
    sample_format: int
    photometric: int
    samples: int  # a pixel
    extra: tuple[int, ...]  # what the samples behind the colours are: 0 nothing, 1 alpha that is multiplied in, 2 alpha
    planar: bool
    compression: int
    predictor: int  # 1: samples; 2, 3: their differences
    fill_order: int  # 2: the bits of each byte are turned round
    tiled: bool
    chunk: tuple[int, int]  # height, width of a strip or tile
    offsets: tuple[int, ...]  # of the chunks, plane by plane
    counts: tuple[int, ...]  # of their bytes
    palette: tuple[int, ...]  # all red ones first

    @property
    def alpha(self) -> int:
        """1 where the colours are multiplied with the alpha that follows them, 2 where they are not, 0 without."""
        return {0: 0, 1: 1}.get(self.extra[0], 2) if self.extra else 0


def can_read(layout: TiffLayout) -> bool:
    """Say whether `read_picture` knows this kind."""
    whole_bytes = layout.bits in (8, 16, 32, 64)
    known = layout.photometric in (WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK)
    if not known or layout.compression not in BYTEWISE or layout.bits > 64 or layout.sample_format > 4:
        return False
    if layout.photometric == WHITE_IS_ZERO and layout.alpha == 1:  # is what is black or what is 0 multiplied?
        return False
    if layout.photometric == PALETTE and (layout.sample_format in (SIGNED, FLOAT) or layout.bits > 16):
        return False
    if layout.predictor == 3 or layout.sample_format == FLOAT:
        return layout.sample_format == FLOAT and whole_bytes and layout.bits > 8
    return layout.samples == COLOUR_SAMPLES[layout.photometric] + len(layout.extra) and (
        layout.predictor == 1 or whole_bytes
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
    colours = COLOUR_SAMPLES[layout.photometric]
    if layout.photometric == PALETTE:
        table = np.array(layout.palette).reshape(3, -1).T  # (K, 3), 16-bit; of some writers 8-bit
        in_bytes = (table if table.max() < 256 else (table + 128) // 257).astype(np.uint8)
        pixels = in_bytes[np.minimum(samples[:, :, 0], len(in_bytes) - 1)]
    else:
        pixels = _bytes(samples[:, :, :colours], layout)
        pixels = 255 - pixels if layout.photometric == WHITE_IS_ZERO else pixels
    picture = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    if layout.alpha:
        alpha = _bytes(samples[:, :, colours], layout)
        if layout.alpha == 1:  # colours are multiplied with alpha already
            white = 255 - alpha.astype(np.int16)[:, :, None]
            flat = np.minimum(np.asarray(picture.convert("RGB")) + white, 255)
            return Image.fromarray(flat.astype(np.uint8))
        picture.putalpha(Image.fromarray(alpha))
    return picture


# --- From the file to samples ---


def _samples(stream: BinaryIO, layout: TiffLayout) -> Samples:
    """Read (H, W, S) samples as numbers of this machine."""
    H, W, S = layout.height, layout.width, layout.samples
    rows_of, columns_of = layout.chunk
    planes, depth = (S, 1) if layout.planar else (1, S)  # of the picture, samples in a pixel of a chunk
    across, tops = -(-W // columns_of), range(0, H, rows_of)
    heights = [rows_of if layout.tiled else min(rows_of, H - top) for top in tops for _ in range(across)]
    if len(layout.offsets) < planes * len(heights):
        raise UnreadableImageError("cannot be decoded: bad TIFF header (strips or tiles are missing)")
    samples = np.zeros((H, W, planes, depth), _sample_type(layout))
    for plane in range(planes):
        for i, rows in enumerate(_chunks(stream, layout, plane * len(heights), heights, columns_of * depth)):
            top, left = i // across * rows_of, i % across * columns_of
            part = _numbers(rows, layout, columns_of, depth)[: H - top, : W - left]
            samples[top : top + rows_of, left : left + columns_of, plane] = part
    return samples.reshape(H, W, S)


def _chunks(stream: BinaryIO, layout: TiffLayout, first: int, heights: list[int], width: int) -> Iterator[Bytes]:
    """Yield the bytes of each strip or tile from the `first` on, (its height, bytes of `width` samples)."""
    row_bytes = -(-width * layout.bits // 8)
    at_once = max(1, GROUP_BYTES // (heights[0] * row_bytes))
    for start in range(0, len(heights), at_once):
        group = heights[start : start + at_once]
        packed = [_packed(stream, layout, first + start + i, height * row_bytes) for i, height in enumerate(group)]
        if layout.compression == RAW:
            rows = np.frombuffer(b"".join(packed), np.uint8).reshape(-1, row_bytes)
            rows = REVERSED_BITS[rows] if layout.fill_order == 2 else rows
        else:
            rows = _unpacked(packed, layout, group, row_bytes)
        yield from np.split(rows, np.cumsum(group)[:-1])


def _packed(stream: BinaryIO, layout: TiffLayout, index: int, unpacked_size: int) -> bytes:
    """Read a strip or tile as it lies in the file."""
    size = unpacked_size
    if layout.compression != RAW:
        if index >= len(layout.counts):
            raise UnreadableImageError("cannot be decoded: bad TIFF header (no sizes of strips)")
        size = min(layout.counts[index], MAX_PACKED * unpacked_size + 1024)
    missing = layout.offsets[index] + size - stream.seek(0, io.SEEK_END)
    if missing > 0:
        raise UnreadableImageError(f"truncated: {missing} bytes missing")
    stream.seek(layout.offsets[index])
    return stream.read(size)


def _unpacked(packed: list[bytes], layout: TiffLayout, heights: list[int], row_bytes: int) -> Bytes:
    """Let libtiff undo the compression, (sum of heights, row_bytes): it is told of a gray picture of 8 bit."""
    counts = [len(part) for part in packed]
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[256], tags[257], tags[258], tags[277], tags[262] = row_bytes, sum(heights), 8, 1, BLACK_IS_ZERO
    tags[259], tags[266], tags[278], tags[279] = layout.compression, layout.fill_order, heights[0], tuple(counts)
    tags[273] = tuple(accumulate(counts[:-1], initial=0))  # `tobytes` adds the place where the directory ends
    file = b"".join((b"II*\0\x08\0\0\0", tags.tobytes(8), *packed))
    with TiffImagePlugin.TiffImageFile(io.BytesIO(file)) as gray:
        gray.load()
        rows: Bytes = np.asarray(gray)
    return rows


def _sample_type(layout: TiffLayout) -> np.dtype[Any]:
    size = next(size for size in (1, 2, 4, 8) if 8 * size >= layout.bits)
    return np.dtype(f"{ {FLOAT: 'f', SIGNED: 'i'}.get(layout.sample_format, 'u') }{size}".replace(" ", ""))


def _numbers(rows: Bytes, layout: TiffLayout, width: int, depth: int) -> Samples:
    """Turn the bytes of a strip or tile, (h, row_bytes), into (h, width, depth) samples."""
    h, bits, kind = len(rows), layout.bits, _sample_type(layout)
    unsigned, room = np.dtype(f"u{kind.itemsize}"), 8 * kind.itemsize
    order: Literal["<", ">"] = ">" if layout.big_endian or bits % 8 else "<"
    if layout.predictor == 3:  # bytes of one significance lie together, the highest first
        by_rank = np.cumsum(rows.reshape(h, -1, depth), axis=1, dtype=np.uint8).reshape(h, kind.itemsize, -1)
        rows, order = by_rank.transpose(0, 2, 1).reshape(h, -1), ">"
    if bits != room:  # fill every sample up with zeros to a whole number of this machine
        fields = np.unpackbits(rows, axis=1, count=width * depth * bits).reshape(h, -1, bits)
        spare = (0, room - bits) if order == "<" else (room - bits, 0)
        rows = np.packbits(np.pad(fields, ((0, 0), (0, 0), spare)), axis=2).reshape(h, -1)
    values = np.ascontiguousarray(rows).view(unsigned.newbyteorder(order)).astype(unsigned).reshape(h, width, depth)
    if layout.predictor == 2:
        values = np.cumsum(values, axis=1, dtype=unsigned)
    if layout.sample_format == SIGNED:
        return (values << (room - bits)).view(kind) >> (room - bits)
    return values.view(kind)


# --- From samples to a picture ---


def _range(values: Samples, layout: TiffLayout) -> tuple[float, float]:
    """Choose the values that are black and white."""
    if layout.sample_format == FLOAT:
        return float_range(values)
    if layout.sample_format == SIGNED:  # as if unsigned; what is below zero is black
        return 0.0, 255.0 if layout.bits <= 8 else 65535.0
    return 0.0, float(2**layout.bits - 1)


def _fractions(values: Samples, black: float, white: float) -> NDArray[np.float64]:
    return np.nan_to_num(fractions_between(values, black, white))


def _bytes(values: Samples, layout: TiffLayout) -> Bytes:
    """Bring samples of any shape to 8 bit, and CMYK, (H, W, 4), to RGB."""
    black, white = _range(values, layout)
    blocks = []
    for top in range(0, len(values), ROWS_AT_ONCE):
        part = _fractions(values[top : top + ROWS_AT_ONCE], black, white)
        if layout.photometric == CMYK and part.ndim == 3:
            part = (1 - part[:, :, :3]) * (1 - part[:, :, 3:])
        blocks.append((part * 255).round().astype(np.uint8))
    return np.concatenate(blocks)


def _deep_gray(samples: Samples, layout: TiffLayout) -> Image.Image:
    values = samples[:, :, 0]
    if layout.alpha:  # laid on white in the values of the file
        black, white = _range(values, layout)
        cover = _fractions(samples[:, :, 1], *_range(samples[:, :, 1], layout))
        flat = (values * cover if layout.alpha == 2 else values.astype(np.float64)) + (1 - cover) * (
            black if layout.photometric == WHITE_IS_ZERO else white
        )
        values = (flat if layout.sample_format == FLOAT else np.rint(flat)).astype(values.dtype)
    if values.dtype == np.int16:
        values = values.astype(np.int32)
    elif values.dtype not in (np.uint16, np.int32):  # Pillow has no mode for it
        if values.dtype.itemsize > 4:  # an infinity stays one, for it is no value to stretch between
            limit = float(np.finfo(np.float32).max)
            values = np.where(np.isinf(values), values, values.clip(-limit, limit))
        values = values.astype(np.float32)
    picture = Image.fromarray(np.ascontiguousarray(values))
    picture.info["negative"] = layout.photometric == WHITE_IS_ZERO
    if layout.sample_format != FLOAT:
        picture.info["white"] = 65535 if layout.sample_format == SIGNED else 2**layout.bits - 1
    return picture
