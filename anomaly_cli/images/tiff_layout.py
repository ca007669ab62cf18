"""Say how a TIFF file stores its picture, from its tags alone: nothing is decoded here."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from anomaly_cli.errors import UnreadableImageError

HEADERS = {
    b"II*\0": ("<", False), b"MM\0*": (">", False), b"II+\0": ("<", True), b"MM\0+": (">", True),
    b"MM*\0": (">", False), b"II\0*": ("<", False),  # not valid, but Pillow reads them
}  # fmt: skip
MAX_PAGES = 1000  # looked through for one that is not a reduced copy
UNSIGNED, SIGNED, FLOAT, VOID = 1, 2, 3, 4
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK, YCBCR, LAB = 0, 1, 2, 3, 5, 6, 8
RAW, JPEGS, WEBP = 1, (6, 7), 50001
BYTEWISE = (RAW, 5, 8, 32773, 32946, 34925, 50000)  # LZW, deflate, PackBits, LZMA, Zstandard: bytes in, bytes out
PREDICTING = (5, 8, 32946, 34925, 50000)  # of which these may hold differences instead of samples
FAX = (2, 3, 4, 32771)
SAMPLES = {WHITE_IS_ZERO: 1, BLACK_IS_ZERO: 1, RGB: 3, PALETTE: 1, CMYK: 4, YCBCR: 3, LAB: 3}
PHOTOMETRIC_NAMES = {
    WHITE_IS_ZERO: "grey", BLACK_IS_ZERO: "grey", RGB: "RGB", PALETTE: "palette", 4: "mask", CMYK: "CMYK",
    YCBCR: "YCbCr", LAB: "Lab", 9: "Lab", 10: "Lab", 32803: "camera raw", 32844: "LogL", 32845: "LogLuv",
    34892: "camera raw", 51177: "depth map",
}  # fmt: skip
COMPRESSION_NAMES = {
    2: "fax", 3: "fax", 4: "fax", 6: "JPEG", 7: "JPEG", 32771: "fax", 32766: "NeXT", 32809: "ThunderScan",
    33003: "JPEG 2000", 33005: "JPEG 2000", 34676: "SGILog", 34677: "SGILog", 34712: "JPEG 2000", 34887: "LERC",
    34892: "lossy JPEG", 50001: "WebP", 50002: "JPEG XL", 52546: "JPEG XL", 65535: "camera",
}  # fmt: skip
FORMAT_NAMES = {UNSIGNED: "", VOID: "", SIGNED: "signed ", FLOAT: "float ", 5: "complex ", 6: "complex "}
NEEDED_TAGS = frozenset((
    254, 255, 256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 317, 320, 322, 323, 324, 325, 330, 338, 339,
    530,
))  # fmt: skip
_CODES = {1: "u1", 3: "u2", 4: "u4", 13: "u4", 16: "u8", 18: "u8"}  # BYTE, SHORT, LONG, IFD, LONG8, IFD8


@dataclass(frozen=True)
class Directory:
    """The numbers of one page.

    Attributes:
        order: of its bytes, "<" or ">".
        big: whether places are 8 bytes wide (BigTIFF).
        place: of the directory in the file.
        tags: the whole numbers of the tags in `NEEDED_TAGS`.
        following: place of the next page, 0 where there is none.
    """

    order: str
    big: bool
    place: int
    tags: dict[int, tuple[int, ...]]
    following: int

    def first(self, tag: int, default: int) -> int:
        """Return the first number of a tag."""
        return self.tags.get(tag, (default,))[0]

    @property
    def is_reduced(self) -> bool:
        """Whether the page says that it is a small copy of another one."""
        return bool(self.first(254, 0) & 1) or self.first(255, 0) == 2


@dataclass(frozen=True)
class TiffLayout:
    """How samples lie in the file.

    Attributes:
        order: of the bytes of a sample, "<" or ">".
        height: of the picture as stored, pixels.
        width: likewise.
        bits: of a sample.
        sample_format: `UNSIGNED`, `SIGNED` or `FLOAT`.
        photometric: what the samples mean.
        samples: a pixel.
        extra: what each sample behind the colours is: 0 unspecified, 1 alpha that the colours are multiplied with, 2
            alpha.
        planar: whether each sample has a plane of its own.
        compression: code of the tag.
        predictor: 1 for samples, 2 and 3 for their differences.
        fill_order: 2 where the bits of each byte are turned round.
        tiled: whether every chunk has its full size, also at the edges.
        chunk: (height, width) of a strip or tile.
        offsets: of the chunks, plane by plane.
        counts: of bytes of the chunks; empty where the file does not say.
        colours: of a palette, all red ones first.
        orientation: as in EXIF.
    """

    order: str
    height: int
    width: int
    bits: int
    sample_format: int
    photometric: int
    samples: int
    extra: tuple[int, ...]
    planar: bool
    compression: int
    predictor: int
    fill_order: int
    tiled: bool
    chunk: tuple[int, int]
    offsets: tuple[int, ...]
    counts: tuple[int, ...]
    colours: tuple[int, ...]
    orientation: int

    @property
    def colour_samples(self) -> int:
        """How many samples of a pixel are colours."""
        return SAMPLES.get(self.photometric, self.samples)

    @property
    def alpha(self) -> int:
        """1 where the colours are multiplied with the alpha that follows them, 2 where they are not, 0 without."""
        return {0: 0, 1: 1}.get(self.extra[0], 2) if self.extra else 0

    @property
    def kind(self) -> str:
        """Name the layout in a few words, such as '32-bit float RGB TIFF with alpha'."""
        what = f"{self.bits}-bit {FORMAT_NAMES[self.sample_format]}{PHOTOMETRIC_NAMES[self.photometric]} TIFF"
        parts = ["alpha"] if self.alpha else []
        parts += [f"{self.samples} samples a pixel"] if self.samples > self.colour_samples + bool(self.alpha) else []
        parts += ["planes"] if self.planar else []
        parts += [f"{COMPRESSION_NAMES[self.compression]} compression"] if self.compression in COMPRESSION_NAMES else []
        return f"{what} with {' and '.join(parts)}" if parts else what

    @property
    def decoded_bytes(self) -> int:
        """Memory that the samples take."""
        return self.height * self.width * self.samples * max(1, self.bits // 8)


def read_directory(stream: BinaryIO, place: int | None = None) -> Directory:
    """Read the numbers of one page, by default the first.

    Raises:
        UnreadableImageError: they are damaged.
    """
    try:
        return _directory_at(stream, place)
    except (struct.error, ValueError, KeyError, OverflowError) as error:  # of what is cut short or no TIFF
        raise UnreadableImageError("truncated: the directory is missing") from error


def full_page(stream: BinaryIO) -> Directory:
    """Find the first page that is not a reduced copy, also below another page; the first where all are."""
    first = page = read_directory(stream)
    seen = {first.place}
    waiting: list[int] = []
    for _ in range(MAX_PAGES):
        if not page.is_reduced:
            return page
        waiting += [*page.tags.get(330, ()), *([page.following] if page.following else [])]
        waiting = [place for place in waiting if place not in seen]
        if not waiting:
            break
        seen.add(waiting[0])
        page = read_directory(stream, waiting.pop(0))
    return first


def _directory_at(stream: BinaryIO, place: int | None) -> Directory:
    stream.seek(0)
    header = stream.read(16)
    order, big = HEADERS[header[:4]]
    if place is None:
        (place,) = struct.unpack(order + ("Q" if big else "I"), header[8:16] if big else header[4:8])
    count_code, entry_code, room = ("Q", "HHQ", 8) if big else ("H", "HHI", 4)
    head, entry = struct.calcsize("<" + count_code), struct.calcsize("<" + entry_code) + room
    stream.seek(place)
    (count,) = struct.unpack(order + count_code, stream.read(head))
    size = count * entry + room
    listing = stream.read(min(size, 2**24))
    tags: dict[int, tuple[int, ...]] = {}
    for start in range(0, len(listing) - entry + 1, entry)[:count]:
        tag, kind, length = struct.unpack_from(order + entry_code, listing, start)
        if tag in NEEDED_TAGS and tag not in tags:
            numbers = _numbers(stream, order, kind, length, listing[start + entry - room : start + entry])
            if numbers:
                tags[tag] = numbers
    behind = listing[count * entry :]
    following = struct.unpack(order + ("Q" if big else "I"), behind)[0] if len(behind) == room else 0
    return Directory(order, big, place, tags, following)


def _numbers(stream: BinaryIO, order: str, kind: int, length: int, data: bytes) -> tuple[int, ...]:
    if kind not in _CODES or not length:
        return ()
    dtype = np.dtype(order + _CODES[kind])
    size = length * dtype.itemsize
    if size > len(data):
        (place,) = struct.unpack(order + ("Q" if len(data) == 8 else "I"), data)
        stream.seek(place)
        data = stream.read(min(size, 2**26))
    if size > len(data):
        return ()
    return tuple(np.frombuffer(data, dtype, length).tolist())


def layout_of(page: Directory) -> TiffLayout:
    """Bring the tags of a page into a layout.

    Raises:
        UnreadableImageError: something needed is missing or makes no sense.
    """
    tags = page.tags
    if 256 not in tags or 257 not in tags:
        raise UnreadableImageError("cannot be decoded: bad TIFF header (no size)")
    width, height = tags[256][0], tags[257][0]
    compression = page.first(259, RAW)
    photometric = page.first(262, WHITE_IS_ZERO) if compression != 6 else YCBCR
    samples = page.first(277, 3 if compression in JPEGS and photometric in (RGB, YCBCR) else 1)
    bits, formats = set(tags.get(258, (1,))), set(tags.get(339, (UNSIGNED,)))
    known = photometric in PHOTOMETRIC_NAMES and formats <= set(FORMAT_NAMES)
    if not (known and len(bits) == len(formats) == 1 and 0 < min(bits) <= 128 and width and height and samples):
        raise UnreadableImageError("cannot be decoded: bad TIFF header (no such layout)")
    if photometric == PALETTE and len(tags.get(320, ())) < 3:
        raise UnreadableImageError("cannot be decoded: bad TIFF header (no palette)")
    tiled = 324 in tags
    chunk = (page.first(323, 0), page.first(322, 0)) if tiled else (min(page.first(278, height), height), width)
    if not 0 < chunk[0] * chunk[1] <= max(4 * height * width, 2**22):
        raise UnreadableImageError("cannot be decoded: bad TIFF header (no such strips or tiles)")
    (sample_format,) = formats
    return TiffLayout(
        order=page.order,
        height=height,
        width=width,
        bits=min(bits),
        sample_format=UNSIGNED if sample_format == VOID else sample_format,
        photometric=photometric,
        samples=samples,
        extra=_extra(tags.get(338, ()), samples, photometric),
        planar=page.first(284, 1) == 2 and samples > 1,
        compression=compression,
        predictor=page.first(317, 1) if compression in PREDICTING else 1,
        fill_order=page.first(266, 1),
        tiled=tiled,
        chunk=chunk,
        offsets=tags.get(324 if tiled else 273, ()),
        counts=tags.get(325 if tiled else 279, ()),
        colours=tags.get(320, ()),
        orientation=page.first(274, 1),
    )


def _extra(listed: tuple[int, ...], samples: int, photometric: int) -> tuple[int, ...]:
    if not listed and photometric == RGB and samples == 4:  # Pillow and libtiff take the fourth for alpha
        return (2,)
    return listed[: max(0, samples - SAMPLES.get(photometric, samples))]
