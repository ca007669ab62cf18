"""Write small TIFF files of any layout, without Pillow, so that what Pillow makes of them can be judged."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Samples = NDArray[np.generic]
NONE, LZW, DEFLATE, PACKBITS = 1, 5, 8, 32773
UNSIGNED, SIGNED, FLOAT = 1, 2, 3
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK, YCBCR = 0, 1, 2, 3, 5, 6
ASSOCIATED, UNASSOCIATED = 1, 2  # of ExtraSamples; 0 is unspecified
SIZE_OF_TYPE = {3: 2, 4: 4, 16: 8}  # SHORT, LONG, LONG8


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How samples are stored; the defaults are those of TIFF 6."""

    bits: int
    photometric: int
    sample_format: int = UNSIGNED
    extra: tuple[int, ...] = ()
    planar: bool = False
    big_endian: bool = False
    compression: int = NONE
    predictor: int = 1
    fill_order: int = 1
    tile: tuple[int, int] | None = None  # height, width; multiples of 16
    rows_per_strip: int = 24
    big_tiff: bool = False
    tags: dict[int, tuple[int, ...]] = field(default_factory=dict)  # further ones, of type SHORT


def tiff_bytes(samples: Samples, layout: Layout) -> bytes:
    """Write (H, W, S) integers or floats as one page."""
    return tiff_of_pages([(samples, layout)])


def tiff_of_pages(pages: list[tuple[Samples, Layout]]) -> bytes:
    """Write pages one behind the other, each in the byte order of the first."""
    first = pages[0][1]
    order, place = "<>"[first.big_endian], "Q" if first.big_tiff else "I"
    header = (b"MM" if first.big_endian else b"II") + (
        struct.pack(order + "HHH", 43, 8, 0) if first.big_tiff else struct.pack(order + "H", 42)
    )
    content, pointer = bytearray(header + bytes(struct.calcsize(place))), len(header)
    for samples, layout in pages:  # each as its directory and then its strips, the last of which ends the file
        chunks = [compressed(chunk, layout) for chunk in _chunks(samples, layout)]
        counts = [len(chunk) for chunk in chunks]
        content += bytes(len(content) % 2)
        start = len(content)
        content[pointer : pointer + struct.calcsize(place)] = struct.pack(order + place, start)
        directory, pointer = _directory(_entries(samples.shape, layout, counts, counts), start, order, layout.big_tiff)
        offsets = list(accumulate(counts[:-1], initial=start + len(directory)))
        entries = _entries(samples.shape, layout, offsets, counts)
        content += _directory(entries, start, order, layout.big_tiff)[0] + b"".join(chunks)
    return bytes(content)


def _entries(
    shape: tuple[int, ...], layout: Layout, offsets: list[int], counts: list[int]
) -> dict[int, tuple[int, tuple[int, ...]]]:
    H, W, S = shape
    short, long = 3, 16 if layout.big_tiff else 4
    entries = {
        256: (long, (W,)), 257: (long, (H,)), 258: (short, (layout.bits,) * S), 259: (short, (layout.compression,)),
        262: (short, (layout.photometric,)), 277: (short, (S,)), 339: (short, (layout.sample_format,) * S),
        284: (short, (1 + layout.planar,)),
    }  # fmt: skip
    if layout.tile is None:
        entries |= {273: (long, tuple(offsets)), 278: (long, (layout.rows_per_strip,)), 279: (long, tuple(counts))}
    else:
        height, width = layout.tile
        entries |= {
            322: (long, (width,)), 323: (long, (height,)), 324: (long, tuple(offsets)), 325: (long, tuple(counts)),
        }  # fmt: skip
    if layout.extra:
        entries[338] = (short, layout.extra)
    if layout.predictor != 1:
        entries[317] = (short, (layout.predictor,))
    if layout.fill_order != 1:
        entries[266] = (short, (layout.fill_order,))
    return entries | {tag: (short, values) for tag, values in layout.tags.items()}


def _directory(entries: dict[int, tuple[int, tuple[int, ...]]], place: int, order: str, big: bool) -> tuple[bytes, int]:
    """Return the bytes of a directory at `place`, and where in the file its pointer to the next one lies."""
    count, pointer = ("Q", "Q") if big else ("H", "I")
    room = struct.calcsize(pointer)
    size = struct.calcsize(order + count) + len(entries) * (4 + 2 * room) + room
    head, tail = struct.pack(order + count, len(entries)), b""
    for tag, (kind, values) in sorted(entries.items()):
        data = struct.pack(f"{order}{len(values)}{'HIQ'[(3, 4, 16).index(kind)]}", *values)
        if len(data) > room:
            tail += bytes(len(tail) % 2)
            data, tail = struct.pack(order + pointer, place + size + len(tail)), tail + data
        head += struct.pack(f"{order}HH{pointer}", tag, kind, len(values)) + data.ljust(room, b"\0")
    return head + bytes(room) + tail + bytes(len(tail) % 2), place + size - room


def _chunks(samples: Samples, layout: Layout) -> list[Samples]:
    H, W, S = samples.shape
    planes = [samples[:, :, s : s + 1] for s in range(S)] if layout.planar else [samples]
    if layout.tile is None:
        step = layout.rows_per_strip
        return [plane[top : top + step] for plane in planes for top in range(0, H, step)]
    height, width = layout.tile
    room = ((0, -H % height), (0, -W % width), (0, 0))
    padded = [np.pad(plane, room) for plane in planes]
    return [
        plane[top : top + height, left : left + width]
        for plane in padded
        for top in range(0, H, height)
        for left in range(0, W, width)
    ]


def compressed(chunk: Samples, layout: Layout) -> bytes:
    data = _predicted_floats(chunk) if layout.predictor == 3 else _packed(chunk, layout)
    if layout.compression == DEFLATE:
        data = zlib.compress(data)
    elif layout.compression == PACKBITS:
        data = b"".join(bytes([len(part) - 1]) + part for part in _parts(data, 128))
    elif layout.compression == LZW:
        data = _literal_lzw(data)
    return data if layout.fill_order == 1 else bytes(int(f"{byte:08b}"[::-1], 2) for byte in data)


def _packed(chunk: Samples, layout: Layout) -> bytes:
    if layout.sample_format == FLOAT:
        return chunk.astype(f"{'<>'[layout.big_endian]}f{layout.bits // 8}").tobytes()
    mask = (1 << layout.bits) - 1
    values = [[int(value) & mask for value in row] for row in chunk.reshape(len(chunk), -1)]
    if layout.predictor == 2:
        S = chunk.shape[2]
        values = [row[:S] + [(a - b) & mask for a, b in zip(row[S:], row[:-S], strict=True)] for row in values]
    if layout.bits % 8 == 0:
        byteorder: Literal["big", "little"] = "big" if layout.big_endian else "little"
        return b"".join(value.to_bytes(layout.bits // 8, byteorder) for row in values for value in row)
    texts = ["".join(f"{value:0{layout.bits}b}" for value in row) for row in values]
    texts = [text + "0" * (-len(text) % 8) for text in texts]
    return b"".join(int(text, 2).to_bytes(len(text) // 8, "big") for text in texts)


def _predicted_floats(chunk: Samples) -> bytes:
    """Adobe's predictor 3: most significant bytes first, by significance, as differences of bytes."""
    h, w, S = chunk.shape
    rows = chunk.astype(f">{chunk.dtype.kind}{chunk.dtype.itemsize}").reshape(h, w * S, 1).view(np.uint8)
    planes = rows.transpose(0, 2, 1).reshape(h, -1)  # (h, bytes)
    planes[:, S:] = planes[:, S:] - planes[:, :-S]
    return planes.tobytes()


def _parts(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


def _literal_lzw(data: bytes) -> bytes:
    """Write every byte as itself, with a clear code often enough that codes stay 9 bits wide."""
    codes = [code for part in _parts(data, 200) for code in (256, *part)] + [257]
    text = "".join(f"{code:09b}" for code in codes)
    text += "0" * (-len(text) % 8)
    return int(text, 2).to_bytes(len(text) // 8, "big")
