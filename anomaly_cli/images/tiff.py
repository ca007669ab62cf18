"""Open a TIFF: Pillow reads the kinds that it reads rightly, `tiff_samples` others, and the rest is refused by name."""

from __future__ import annotations

import ctypes
import io
import struct
from typing import BinaryIO

from PIL import ExifTags, Image, TiffImagePlugin, _imaging

from anomaly_cli.errors import UnreadableImageError
from anomaly_cli.images.decode_limits import check_size
from anomaly_cli.images.pillow_faults import NOT_SUPPORTED
from anomaly_cli.images.tiff_samples import (
    BLACK_IS_ZERO,
    BYTEWISE,
    CMYK,
    COLOUR_SAMPLES,
    PALETTE,
    PREDICTING,
    RAW,
    RGB,
    UNSIGNED,
    WHITE_IS_ZERO,
    TiffLayout,
    can_read,
    read_picture,
)  # fmt: skip

HEADERS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"MM*\0", b"II\0*")  # the last two are not valid, but Pillow's
MAX_PAGES = 1000  # looked through for one that is not a reduced copy
YCBCR, LAB, OLD_JPEG = 6, 8, 6
PHOTOMETRIC = {
    WHITE_IS_ZERO: "grey", BLACK_IS_ZERO: "grey", RGB: "RGB", PALETTE: "palette", CMYK: "CMYK", YCBCR: "YCbCr",
    LAB: "Lab", 9: "Lab", 32803: "camera raw", 32844: "LogL", 32845: "LogLuv", 34892: "camera raw",
}  # fmt: skip
FORMATS = {UNSIGNED: "", 2: "signed ", 3: "float ", 4: "", 5: "complex ", 6: "complex "}
PILLOW_UNPACKS = {2: 1, 3: 1, 4: 1, 32771: 1, 6: 8, 7: 8, 50001: 8, 32809: 4}  # fax, JPEG, WebP, ThunderScan: bits

Page = TiffImagePlugin.ImageFileDirectory_v2


def open_tiff(stream: BinaryIO) -> Image.Image:
    """Open the first page that is not a reduced copy.

    Returns:
        Either undecoded by Pillow, or decoded as `tiff_samples.read_picture` says, with its orientation as EXIF.

    Raises:
        UnreadableImageError: the file is damaged, too large, or of a kind that is not supported.
    """
    page, place = _full_page(stream)
    layout = _layout(page)
    if _pillow_reads(page, layout):
        image = TiffImagePlugin.TiffImageFile(_beginning_at(place, stream), "")
        image.info.pop("xmp", None)  # Pillow would turn the picture as that says
        image.info["bytes"] = max(map(sum, zip(layout.offsets, layout.counts, strict=False)), default=0)
        return image
    if not can_read(layout):
        raise UnreadableImageError(NOT_SUPPORTED + _kind(layout))
    check_size(layout.width, layout.height, layout.height * layout.width * layout.samples * layout.bits // 8, stream)
    picture = read_picture(stream, layout)
    picture.getexif()[ExifTags.Base.Orientation] = _number(page, 274, 1)
    return picture


def _full_page(stream: BinaryIO) -> tuple[Page, int]:
    """Find the first page that is not a reduced copy, also below another page, and its place; else the first."""
    header = _header(stream)
    if header[:4] == b"MM\0+":
        raise UnreadableImageError(f"{NOT_SUPPORTED}big-endian BigTIFF")
    try:
        place = Page(header).next
    except struct.error as error:
        raise UnreadableImageError("truncated: the directory is missing") from error
    places, seen = [place], set[int]()
    while places and len(seen) < MAX_PAGES:
        place = places.pop(0)
        if place in seen:
            continue
        seen.add(place)
        page = Page(header)
        stream.seek(place)
        page.load(stream)
        if len(seen) == 1:
            first = page, place
        if not _number(page, 254, 0) & 1 and _number(page, 255, 0) != 2:
            return page, place
        places += [*_numbers(page, 330), *([page.next] if page.next else [])]
    return first


def _header(stream: BinaryIO) -> bytes:
    stream.seek(0)
    header = stream.read(16)
    return header if header[2:3] == b"+" else header[:8]


def _numbers(page: Page, tag: int) -> tuple[int, ...]:
    value = page.get(tag, ())
    values = value if isinstance(value, tuple) else (value,)
    return values if all(isinstance(each, int) for each in values) else ()


def _number(page: Page, tag: int, default: int) -> int:
    return next(iter(_numbers(page, tag)), default)


def _layout(page: Page) -> TiffLayout:
    width, height = _number(page, 256, 0), _number(page, 257, 0)
    if not (width and height):
        raise UnreadableImageError("truncated: the directory is missing")
    compression = _number(page, 259, RAW)
    photometric = YCBCR if compression == OLD_JPEG else _number(page, 262, WHITE_IS_ZERO)
    colours = COLOUR_SAMPLES.get(photometric, 1)
    samples = _number(page, 277, colours if compression in PILLOW_UNPACKS else 1)
    bits, formats = set(_numbers(page, 258)) or {1}, set(_numbers(page, 339)) or {UNSIGNED}
    tiled = 324 in page
    chunk = (
        (_number(page, 323, 0), _number(page, 322, 0)) if tiled else (min(_number(page, 278, height), height), width)
    )
    known = photometric in PHOTOMETRIC and formats <= set(FORMATS) and (photometric != PALETTE or 320 in page)
    if not (known and len(bits) == len(formats) == 1 and 0 < min(bits) <= 128 and samples):
        raise UnreadableImageError("cannot be decoded: bad TIFF header (no such layout)")
    if not 0 < chunk[0] * chunk[1] <= max(4 * height * width, 2**22):
        raise UnreadableImageError("cannot be decoded: bad TIFF header (no such strips or tiles)")
    extra = _numbers(page, 338) or ((2,) if photometric == RGB and samples == 4 else ())  # as Pillow and libtiff do
    return TiffLayout(
        big_endian=page.prefix == b"MM",
        height=height,
        width=width,
        bits=min(bits),
        sample_format=min(formats),
        photometric=photometric,
        samples=samples,
        extra=extra[: max(0, samples - COLOUR_SAMPLES.get(photometric, samples))],
        planar=_number(page, 284, 1) == 2 and samples > 1,
        compression=compression,
        predictor=_number(page, 317, 1) if compression in PREDICTING else 1,
        fill_order=_number(page, 266, 1),
        tiled=tiled,
        chunk=chunk,
        offsets=_numbers(page, 324 if tiled else 273),
        counts=_numbers(page, 325 if tiled else 279),
        palette=_numbers(page, 320),
    )


def _kind(layout: TiffLayout) -> str:
    """Name the layout in a few words, such as '32-bit complex RGB TIFF with alpha'."""
    extra = layout.samples - COLOUR_SAMPLES.get(layout.photometric, layout.samples) - bool(layout.alpha)
    code = TiffImagePlugin.COMPRESSION_INFO.get(layout.compression, f"number {layout.compression}")
    compression = "" if layout.compression in BYTEWISE else f"compression {code.removeprefix('tiff_')}"
    parts = ["alpha" * bool(layout.alpha), f"{layout.samples} samples a pixel" * bool(extra), "planes" * layout.planar]
    details = " and ".join(part for part in (*parts, compression) if part)
    kind = f"{layout.bits}-bit {FORMATS[layout.sample_format]}{PHOTOMETRIC[layout.photometric]} TIFF"
    return f"{kind} with {details}" if details else kind


def _pillow_reads(page: Page, layout: TiffLayout) -> bool:
    """Say whether Pillow is known to give the right pixels: what the tests of all layouts found."""
    photometric, bits, samples = layout.photometric, layout.bits, layout.samples
    gray = photometric in (WHITE_IS_ZERO, BLACK_IS_ZERO)
    if layout.compression not in BYTEWISE:
        colours = (gray and samples == 1) or (bits == 8 and photometric in (RGB, CMYK, YCBCR))
        return colours and bits == PILLOW_UNPACKS.get(layout.compression)
    plain = _number(page, 284, 1) == layout.fill_order == layout.sample_format == 1 and layout.predictor <= 2
    if not plain or (photometric == PALETTE and max(layout.palette) < 256):
        return False
    if photometric == YCBCR:
        whole = layout.compression != RAW or _numbers(page, 530) == (1, 1)
        return bits == 8 and samples in (1, 3) and whole
    if samples != COLOUR_SAMPLES.get(photometric, 0):
        return bits == 8 and len(layout.extra) == 1 and photometric in (BLACK_IS_ZERO, RGB)
    if bits == 16:
        return photometric in (BLACK_IS_ZERO, RGB)
    return bits == 8 or (bits in (1, 2, 4) and (gray or photometric == PALETTE))


def _beginning_at(place: int, stream: BinaryIO) -> BinaryIO:
    """Give the file, changed where need be so that the page at a place is its first."""
    header = _header(stream)
    stream.seek(0)
    if place == Page(header).next:
        return stream
    content = bytearray(stream.read())
    order = "<" if header[:2] == b"II" else ">"
    struct.pack_into(*((order + "Q", content, 8) if header[2] == 43 else (order + "I", content, 4)), place)
    return io.BytesIO(content)


def silence_libtiff() -> None:
    """Take libtiff's printing away for this process; what it tells by return values stays.

    Pillow has no setting for that. Where its build hides the functions of libtiff, damaged TIFF files go on printing.
    """
    library = ctypes.CDLL(_imaging.__file__)  # a symbol is looked up in the libraries that it is linked with, too
    for name in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
        function = getattr(library, name, None)
        if function is not None:
            function.argtypes, function.restype = [ctypes.c_void_p], ctypes.c_void_p
            function(None)
