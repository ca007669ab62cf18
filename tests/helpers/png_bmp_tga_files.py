"""Write small PNG, BMP and TGA files of any layout, without Pillow."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[Any]
ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))


def bit_rows(values: Indices, bits: int, align: int = 1, byteorder: str = "big") -> list[bytes]:
    """Pack (h, n) whole numbers into rows of bytes, each filled up to a multiple of `align` bytes."""
    rows = []
    for row in values.reshape(len(values), -1):
        if bits >= 8:
            data = b"".join(int(value).to_bytes(bits // 8, byteorder) for value in row)  # type: ignore[arg-type]
        else:
            text = "".join(f"{int(value):0{bits}b}" for value in row)
            text += "0" * (-len(text) % 8)
            data = int(text or "0", 2).to_bytes(len(text) // 8, "big")
        rows.append(data + bytes(-len(data) % align))
    return rows


def png_bytes(
    samples: Indices, colour: int, bits: int, *, interlaced: bool = False, chunks: tuple[tuple[bytes, bytes], ...] = ()
) -> bytes:
    """Write (H, W, S) samples, with chunks before the picture."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    H, W, _ = samples.shape
    passes = [samples[top::down, left::right] for top, left, down, right in (ADAM7 if interlaced else ((0, 0, 1, 1),))]
    rows = [b"\0" + row for part in passes if part.size for row in bit_rows(part, bits)]
    header = struct.pack(">IIBBBBB", W, H, bits, colour, 0, 0, int(interlaced))
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(b"".join(rows))), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def bmp_bytes(
    values: Indices,
    bits: int,
    *,
    palette: NDArray[np.uint8] | None = None,
    masks: tuple[int, ...] = (),
    top_down: bool = False,
    header: int = 40,
    data: bytes | None = None,
    compression: int | None = None,
) -> bytes:
    """Write (H, W) indices or packed pixels, or `data` instead, which is in run-length code."""
    H, W = values.shape
    compression = (3 if masks else 0) if compression is None else compression
    if data is None:
        rows = bit_rows(values, bits, 4, "little")
        data = b"".join(rows if top_down else rows[::-1])
    colours = (
        b""
        if palette is None
        else b"".join(bytes(colour[::-1]) + (b"" if header == 12 else b"\0") for colour in palette)
    )
    if header == 12:
        info = struct.pack("<IHHHH", 12, W, H, 1, bits)
    else:
        used = 0 if palette is None else len(palette)
        size = (header, W, -H if top_down else H, 1, bits, compression, len(data), 0, 0, used, 0)
        info = struct.pack("<IiiHHIIiiII", *size)
    packed = struct.pack(f"<{len(masks)}I", *masks)
    if header > 40:
        info = (info + packed).ljust(header, b"\0")
    elif header == 40:
        info += packed
    start = 14 + len(info) + len(colours)
    return b"BM" + struct.pack("<IHHI", start + len(data), 0, 0, start) + info + colours + data


def bmp_runs(values: Indices, bits: int) -> bytes:
    """Code (H, W) indices of 4 or 8 bits as BMP does: runs of one value, and stretches as they are."""
    data = b""
    for row in values[::-1].tolist():
        start = 0
        while start < len(row):
            end = start + 1
            while end < len(row) and row[end] == row[start]:
                end += 1
            if end - start > 1 or len(row) - start < 3:
                code = row[start] if bits == 8 else row[start] * 17
                data += bytes([end - start, code])
            else:
                end = min(len(row), start + 5)
                stretch = bit_rows(np.array([row[start:end]]), bits, 2)[0]
                data += bytes([0, end - start]) + stretch
            start = end
        data += b"\0\0"
    return data[:-2] + b"\0\1"


def tga_bytes(
    values: Indices,
    kind: int,
    depth: int,
    *,
    palette: tuple[int, int, list[int]] | None = None,
    alpha_bits: int = 0,
    top: bool = True,
    right: bool = False,
    name: bytes = b"",
    rle: bool = False,
    footer: bytes = b"",
) -> bytes:
    """Write (H, W) packed pixels; `palette` is (index of its first colour, depth, packed colours)."""
    H, W = values.shape
    ordered = values[:: 1 if top else -1, :: -1 if right else 1]
    size = (depth + 7) // 8
    pixels = [int(value).to_bytes(size, "little") for value in ordered.reshape(-1)]
    if rle:
        kind += 8
        body = b"".join(_runs(pixels[start : start + W]) for start in range(0, H * W, W))
    else:
        body = b"".join(pixels)
    first, palette_depth, colours = palette or (0, 0, [])
    table = b"".join(colour.to_bytes((palette_depth + 7) // 8, "little") for colour in colours)
    flags = alpha_bits | (0x20 if top else 0) | (0x10 if right else 0)
    header = struct.pack(
        "<BBBHHBHHHHBB", len(name), bool(palette), kind, first, len(colours), palette_depth, 0, 0, W, H, depth, flags
    )
    return header + name + table + body + footer


def _runs(pixels: list[bytes]) -> bytes:
    """Code a line in turns of runs and single pixels."""
    data, start = b"", 0
    while start < len(pixels):
        end = start + 1
        while end < len(pixels) and pixels[end] == pixels[start] and end - start < 128:
            end += 1
        if end - start > 1:
            data += bytes([127 + end - start]) + pixels[start]
        else:
            data += b"\0" + pixels[start]
        start = end
    return data
