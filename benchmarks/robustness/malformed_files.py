"""Make malformed image files from a seed: cut, flipped, shuffled, lying about their size, bombs, and what is no image.

Every maker takes a generator of random numbers and gives a file's suffix and content; the same seed gives the same
bytes. Nothing here decodes what it made.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

Made = tuple[str, bytes]  # suffix, content
Maker = Callable[[np.random.Generator], Made]

SIDE = 48  # pixels, of the pictures that are damaged
# Suffix, format and options: what Pillow writes and the pipeline reads.
VARIANTS: dict[str, tuple[str, str, dict[str, object]]] = {
    "jpeg": (".jpg", "JPEG", {}),
    "jpeg progressive": (".jpg", "JPEG", {"progressive": True, "quality": 90}),
    "jpeg cmyk": (".jpeg", "JPEG", {"mode": "CMYK"}),
    "png": (".png", "PNG", {}),
    "png palette": (".png", "PNG", {"mode": "P"}),
    "png alpha": (".png", "PNG", {"mode": "RGBA"}),
    "png 16 bit": (".png", "PNG", {"mode": "I;16"}),
    "tiff": (".tif", "TIFF", {}),
    "tiff lzw": (".tif", "TIFF", {"compression": "tiff_lzw"}),
    "tiff deflate": (".tiff", "TIFF", {"compression": "tiff_deflate"}),
    "tiff packbits": (".tiff", "TIFF", {"compression": "packbits"}),
    "tiff fax": (".tif", "TIFF", {"mode": "1", "compression": "group4"}),
    "tiff float": (".tif", "TIFF", {"mode": "F"}),
    "webp": (".webp", "WEBP", {}),
    "webp lossless": (".webp", "WEBP", {"lossless": True}),
    "gif": (".gif", "GIF", {"mode": "P"}),
    "bmp": (".bmp", "BMP", {}),
    "bmp palette": (".bmp", "BMP", {"mode": "P"}),
}
TEXT = b"From: someone\nTo: nobody\n\nThis is a letter and no picture at all.\n"


@cache
def sound(variant: str) -> Made:
    """Make a picture that can be read, one of `VARIANTS`."""
    suffix, file_format, options = VARIANTS[variant]
    options = dict(options)
    rng = np.random.default_rng(7)
    pixels = rng.integers(0, 256, (SIDE // 8, SIDE // 8, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    mode = str(options.pop("mode", "RGB"))
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    stream = io.BytesIO()
    image.convert(mode).save(stream, file_format, **options)
    return suffix, stream.getvalue()


def _picked(rng: np.random.Generator) -> Made:
    return sound(list(VARIANTS)[rng.integers(len(VARIANTS))])


def _place(rng: np.random.Generator, content: bytes) -> int:
    """Choose a byte, half of the time within the header, where the damage does most."""
    return int(rng.integers(min(100, len(content)) if rng.random() < 0.5 else len(content)))


def cut(rng: np.random.Generator) -> Made:
    """Keep the beginning only, as a full disk or a broken transfer leaves it."""
    suffix, content = _picked(rng)
    return suffix, content[: _place(rng, content)]


def flipped(rng: np.random.Generator) -> Made:
    """Flip one to sixteen bits."""
    suffix, content = _picked(rng)
    damaged = bytearray(content)
    for _ in range(2 ** rng.integers(5)):
        damaged[_place(rng, content)] ^= 1 << rng.integers(8)
    return suffix, bytes(damaged)


def overwritten(rng: np.random.Generator) -> Made:
    """Overwrite a stretch with zeros, ones or noise, as a bad block does."""
    suffix, content = _picked(rng)
    start, length = _place(rng, content), int(rng.integers(1, 64))
    filling = [bytes(length), b"\xff" * length, rng.bytes(length)][rng.integers(3)]
    return suffix, content[:start] + filling + content[start + length :]


def shuffled(rng: np.random.Generator) -> Made:
    """Swap, repeat or drop a block."""
    suffix, content = _picked(rng)
    a, b, c = sorted(rng.integers(0, len(content), 3))
    kind = rng.integers(3)
    if kind == 0:
        return suffix, content[:a] + content[b:c] + content[a:b] + content[c:]
    return suffix, content[:b] + (content[a:c] if kind == 1 else b"") + content[c:]


def spliced(rng: np.random.Generator) -> Made:
    """Put the beginning of one file in front of the end of another."""
    suffix, first = _picked(rng)
    _, second = _picked(rng)
    return suffix, first[: _place(rng, first)] + second[_place(rng, second) :]


def misnamed(rng: np.random.Generator) -> Made:
    """Give a sound picture the suffix of another format: it is still read."""
    suffix, _ = _picked(rng)
    return suffix, _picked(rng)[1]


def foreign(rng: np.random.Generator) -> Made:
    """Give an image suffix to what is none."""
    suffix, _ = _picked(rng)
    others = (
        b"",
        bytes(5000),
        TEXT,
        b"%PDF-1.7\n",
        b"PK\3\4" + rng.bytes(300),
        b"\x7fELF" + bytes(99),
        b"\0",
        TEXT[:1],
    )
    return suffix, [*others, rng.bytes(2000)][rng.integers(len(others) + 1)]


def png_chunks(content: bytes) -> list[bytes]:
    """Cut a PNG behind its signature into whole chunks."""
    chunks, place = [], 8
    while place < len(content):
        length = int.from_bytes(content[place : place + 4], "big")
        chunks.append(content[place : place + length + 12])
        place += length + 12
    return chunks


def reordered_png(rng: np.random.Generator) -> Made:
    """Put the chunks of a PNG into any order, each with its right checksum."""
    suffix, content = sound(["png", "png palette", "png alpha", "png 16 bit"][rng.integers(4)])
    chunks = png_chunks(content)
    order = rng.permutation(len(chunks)) if rng.random() < 0.5 else rng.integers(0, len(chunks), len(chunks))
    return suffix, content[:8] + b"".join(chunks[i] for i in order)


def _png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(width: int, height: int, bits: int, colour: int, data: bytes) -> bytes:
    header = _png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    palette = _png_chunk(b"PLTE", bytes(6)) if colour == 3 else b""
    return b"\x89PNG\r\n\x1a\n" + header + palette + _png_chunk(b"IDAT", data) + _png_chunk(b"IEND", b"")


def _side(rng: np.random.Generator) -> int:
    """Choose a size that no picture of these few bytes has."""
    extremes = (0, 1, 65_535, 65_536, 10**6, 2**31 - 1, 2**32 - 1)
    return int(extremes[rng.integers(len(extremes))]) if rng.random() < 0.6 else int(2 ** rng.uniform(8, 20))


def lying_png(rng: np.random.Generator) -> Made:
    """Claim absurd dimensions in the header of a PNG, with the right checksum."""
    _, content = sound("png")
    data = zlib.compress(bytes(5000))
    return ".png", _png(_side(rng), _side(rng), 8, 2, data if rng.random() < 0.5 else content[50:])


def lying_jpeg(rng: np.random.Generator) -> Made:
    """Claim absurd dimensions in the frame header of a JPEG."""
    suffix, content = sound(["jpeg", "jpeg progressive", "jpeg cmyk"][rng.integers(3)])
    place = max(content.find(marker) for marker in (b"\xff\xc0", b"\xff\xc2")) + 5
    size = struct.pack(">HH", *(min(_side(rng), 65_535) for _ in range(2)))
    return suffix, content[:place] + size + content[place + 4 :]


def lying_bmp(rng: np.random.Generator) -> Made:
    """Claim absurd, also negative, dimensions in a BMP."""
    suffix, content = sound(["bmp", "bmp palette"][rng.integers(2)])
    sizes = [int(_side(rng) * rng.choice((-1, 1))) for _ in range(2)]
    return suffix, content[:18] + struct.pack("<qq", *sizes)[:4] + struct.pack("<q", sizes[1])[:4] + content[26:]


def lying_gif(rng: np.random.Generator) -> Made:
    """Claim absurd dimensions of the screen of a GIF, of its frame, or of both."""
    suffix, content = sound("gif")
    damaged = bytearray(content)
    frame = content.rindex(b",", 0, len(content) // 2 + 1) if b"," in content[: len(content) // 2 + 1] else 10
    for place in ((6,), (frame + 5,), (6, frame + 5))[rng.integers(3)]:
        damaged[place : place + 4] = struct.pack("<HH", *(min(_side(rng), 65_535) for _ in range(2)))
    return suffix, bytes(damaged)


def lying_webp(rng: np.random.Generator) -> Made:
    """Overwrite bytes of the first chunk of a WebP, where its dimensions are."""
    suffix, content = sound(["webp", "webp lossless"][rng.integers(2)])
    start = int(rng.integers(12, 30))
    return suffix, content[:start] + rng.bytes(4) + content[start + 4 :]


def lying_tiff(rng: np.random.Generator) -> Made:
    """Write any value into an entry of the directory of a TIFF: dimensions, counts, offsets, compression, type."""
    suffix, content = sound([name for name in VARIANTS if name.startswith("tiff")][rng.integers(6)])
    start = int.from_bytes(content[4:8], "little")
    count = int.from_bytes(content[start : start + 2], "little")
    damaged = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        entry = start + 2 + 12 * int(rng.integers(count))
        place, width = [(entry, 2), (entry + 2, 2), (entry + 4, 4), (entry + 8, 4)][rng.integers(4)]
        value = int(rng.integers(0, 400)) if rng.random() < 0.5 else _side(rng)
        damaged[place : place + width] = struct.pack("<Q", value % 2**32)[:width]
    return suffix, bytes(damaged)


def _zeros(count: int) -> bytes:
    """Compress zeros at a thousand to one; a block that refers to none before it is compressed once and repeated."""
    squeezer = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    block = squeezer.compress(bytes(2**20)) + squeezer.flush(zlib.Z_FULL_FLUSH)
    rest = squeezer.compress(bytes(count % 2**20)) + squeezer.flush()
    checksum = (count % 65521) << 16 | 1  # Adler-32 of so many zeros
    return b"\x78\xda" + block * (count // 2**20) + rest + struct.pack(">I", checksum)


def png_bomb(side: int, colour: int, bits: int = 8) -> bytes:
    """Make a PNG of side × side black pixels, a thousandth of what it decodes to."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    return _png(side, side, bits, colour, _zeros(side * (1 + (side * channels * bits + 7) // 8)))


def png_text_bomb(megabytes: int) -> bytes:
    """Make a small PNG whose compressed comment and colour profile unpack to many megabytes."""
    _, content = sound("png")
    header, *rest = png_chunks(content)
    bomb = _zeros(megabytes * 10**6)
    extra = _png_chunk(b"zTXt", b"Comment\0\0" + bomb) + _png_chunk(b"iCCP", b"profile\0\0" + bomb)
    return content[:8] + header + extra + b"".join(rest)


def tiff_bomb(side: int, compression: str) -> bytes:
    """Make a TIFF of side × side white pixels in one strip, of 1 bit (fax, 4th group) or 24 (deflate)."""
    fax = compression == "fax"
    data = b"\xff" * (side // 8 + 1) + b"\x00\x10\x01" if fax else _zeros(side * side * 3)
    bits, code, samples = (1, 4, 1) if fax else (8, 8, 3)
    entries = (
        (256, 4, 1, side), (257, 4, 1, side), (258, 3, 1, bits), (259, 3, 1, code), (262, 3, 1, 0 if fax else 2),
        (273, 4, 1, 8), (277, 3, 1, samples), (278, 4, 1, side), (279, 4, 1, len(data)),
    )  # fmt: skip
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory + bytes(4)


def gif_bomb(side: int) -> bytes:
    """Make a GIF whose screen is side × side pixels, and its frame one pixel."""
    stream = io.BytesIO()
    Image.new("P", (1, 1)).save(stream, "GIF")
    content = stream.getvalue()
    return content[:6] + struct.pack("<HH", side, side) + content[10:]


def bmp_bomb(side: int) -> bytes:
    """Make a BMP in run-length code, 255 pixels in two bytes."""
    line = b"\xff\0" * (side // 255) + bytes([side % 255, 0]) + b"\0\0"
    body = line * side + b"\0\1"
    header = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 8, 1, len(body), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 1078 + len(body), 0, 0, 1078) + header + bytes(1024) + body


def jpeg_bomb(side: int, scans: int) -> bytes:
    """Make a progressive JPEG whose last scan, a few bytes, comes again and again: each goes over all its pixels."""
    stream = io.BytesIO()
    Image.new("L", (side, side)).save(stream, "JPEG", progressive=True, quality=10)
    content = stream.getvalue()
    return content[:-2] + content[content.rindex(b"\xff\xda") : -2] * scans + content[-2:]


def webp_bomb(side: int) -> bytes:
    """Make a lossless WebP of side × side black pixels: its few dozen bytes hold for any size in the header."""
    stream = io.BytesIO()
    Image.new("RGB", (64, 64)).save(stream, "WEBP", lossless=True)
    content = stream.getvalue()
    place = content.index(b"VP8L") + 9
    kept = int.from_bytes(content[place : place + 4], "little") >> 28
    sizes = struct.pack("<I", kept << 28 | (side - 1) << 14 | side - 1)
    return content[:place] + sizes + content[place + 4 :]


def ico_bomb(side: int) -> bytes:
    """Make an icon that holds a PNG much larger than its directory says."""
    picture = png_bomb(side, 6)
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, 0, 0, 0, 0, 1, 32, len(picture), 22) + picture


BOMBS: dict[str, Callable[[], Made]] = {
    "png rgb": lambda: (".png", png_bomb(22_000, 2)),
    "png rgba": lambda: (".png", png_bomb(22_000, 6)),
    "png palette": lambda: (".png", png_bomb(22_000, 3)),
    "png gray of 1 bit": lambda: (".png", png_bomb(22_000, 0, 1)),
    "png gray of 16 bit": lambda: (".png", png_bomb(22_000, 0, 16)),
    "png beyond the limit": lambda: (".png", png_bomb(30_000, 0)),
    "png just small enough": lambda: (".png", png_bomb(6_300, 6)),
    "png text and profile": lambda: (".png", png_text_bomb(500)),
    "tiff deflate": lambda: (".tif", tiff_bomb(20_000, "deflate")),
    "tiff fax": lambda: (".tif", tiff_bomb(22_000, "fax")),
    "gif": lambda: (".gif", gif_bomb(22_000)),
    "gif beyond the limit": lambda: (".gif", gif_bomb(65_535)),
    "gif just small enough": lambda: (".gif", gif_bomb(12_600)),
    "bmp": lambda: (".bmp", bmp_bomb(22_000)),
    "jpeg of 500 scans": lambda: (".jpg", jpeg_bomb(5_000, 500)),
    "jpeg of 30 scans": lambda: (".jpg", jpeg_bomb(5_000, 20)),
    "webp": lambda: (".webp", webp_bomb(16_383)),
    "webp just small enough": lambda: (".webp", webp_bomb(7_300)),
    "icon": lambda: (".png", ico_bomb(13_000)),
}  # fmt: skip
MUTATIONS: dict[str, Maker] = {
    maker.__name__.replace("_", " "): maker
    for maker in (
        cut, flipped, overwritten, shuffled, spliced, misnamed, foreign, reordered_png,
        lying_png, lying_jpeg, lying_bmp, lying_gif, lying_webp, lying_tiff,
    )
}  # fmt: skip


def write_malformed(folder: Path, count: int, seed: int, *, bombs: bool = True) -> list[Path]:
    """Write `count` files, all kinds of mutations in turn, after one of each bomb.

    Args:
        folder: made where missing.
        count: of files, the bombs included.
        seed: of the mutations.
        bombs: whether to begin with them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    made = [(f"bomb {name}", maker) for name, maker in BOMBS.items()][:count] if bombs else []
    paths = []
    for i in range(count):
        rng = np.random.default_rng([seed, i])
        if i < len(made):
            kind, (suffix, content) = made[i][0], made[i][1]()
        else:
            kind, maker = list(MUTATIONS.items())[i % len(MUTATIONS)]
            suffix, content = maker(rng)
        paths.append(folder / f"{i:05d} {kind}{suffix}")
        paths[-1].write_bytes(content)
    return paths
