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
from anomaly_cli.images.tiff_layout import (
    BLACK_IS_ZERO,
    BYTEWISE,
    CMYK,
    FAX,
    JPEGS,
    LAB,
    PALETTE,
    RAW,
    RGB,
    UNSIGNED,
    WEBP,
    WHITE_IS_ZERO,
    YCBCR,
    Directory,
    TiffLayout,
    full_page,
    layout_of,
    read_directory,
)  # fmt: skip
from anomaly_cli.images.tiff_samples import can_read, read_picture

THUNDERSCAN = 32809


def open_tiff(stream: BinaryIO) -> Image.Image:
    """Open the first page that is not a reduced copy.

    Returns:
        Either undecoded by Pillow, or decoded as `tiff_samples.read_picture` says, with its orientation as EXIF.

    Raises:
        UnreadableImageError: the file is damaged, too large, or of a kind that is not supported.
    """
    page = full_page(stream)
    layout = layout_of(page)
    if _pillow_reads(page, layout):
        image = TiffImagePlugin.TiffImageFile(_beginning_with(page, stream), "")
        image.info.pop("xmp", None)  # Pillow would turn the picture as that says
        image.info["bytes"] = max(map(sum, zip(layout.offsets, layout.counts, strict=False)), default=0)
        return image
    if not can_read(layout):
        raise UnreadableImageError(f"{NOT_SUPPORTED}{layout.kind}")
    check_size(layout.width, layout.height, layout.decoded_bytes, stream)
    picture = read_picture(stream, layout)
    picture.getexif()[ExifTags.Base.Orientation] = layout.orientation
    return picture


def _pillow_reads(page: Directory, layout: TiffLayout) -> bool:
    """Say whether Pillow is known to give the right pixels: what the tests of all layouts found."""
    if page.order == ">" and page.big:
        return False
    if layout.compression not in BYTEWISE:
        return _pillow_unpacks(layout)
    if (
        page.first(284, 1) != 1
        or layout.fill_order != 1
        or page.first(339, UNSIGNED) != UNSIGNED
        or layout.predictor > 2
    ):
        return False
    if layout.photometric == PALETTE and max(layout.colours) < 256:
        return False
    if layout.photometric == YCBCR:
        return (
            layout.bits == 8
            and layout.samples in (1, 3)
            and (layout.compression != RAW or page.tags.get(530) == (1, 1))
        )
    if layout.samples != layout.colour_samples:
        return (
            layout.bits == 8
            and layout.samples == layout.colour_samples + 1
            and (layout.photometric in (BLACK_IS_ZERO, RGB))
        )
    if layout.bits == 8:
        return layout.photometric in (WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK, LAB)
    if layout.bits == 16:
        return layout.photometric in (BLACK_IS_ZERO, RGB)
    return layout.bits in (1, 2, 4) and layout.photometric in (WHITE_IS_ZERO, BLACK_IS_ZERO, PALETTE)


def _pillow_unpacks(layout: TiffLayout) -> bool:
    """Say whether Pillow gives the right pixels of a compression that works on pixels, not on bytes."""
    gray = layout.photometric in (WHITE_IS_ZERO, BLACK_IS_ZERO) and layout.samples == 1
    if layout.compression in FAX:
        return layout.bits == 1 and gray
    if layout.compression == THUNDERSCAN:
        return layout.bits == 4 and gray
    if layout.compression in JPEGS or layout.compression == WEBP:
        return layout.bits == 8 and (gray or layout.photometric in (RGB, CMYK, YCBCR))
    return False


def _beginning_with(page: Directory, stream: BinaryIO) -> BinaryIO:
    """Give the file, changed where need be so that the page is its first."""
    stream.seek(0)
    if page.place == read_directory(stream).place:
        stream.seek(0)
        return stream
    stream.seek(0)
    content = bytearray(stream.read())
    if page.big:
        content[8:16] = struct.pack(page.order + "Q", page.place)
    else:
        content[4:8] = struct.pack(page.order + "I", page.place)
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
