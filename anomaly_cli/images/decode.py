"""Read image files as 8-bit RGB; a file that cannot be read is one short reason, never a crash.

Reads only: it must not print, warn, write, or change a setting of Pillow's that other code depends on.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import re
import stat
import struct
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile

from anomaly_cli.errors import UnreadableImageError
from anomaly_cli.images.decode_limits import check_cost
from anomaly_cli.images.gray_levels import flattened
from anomaly_cli.images.network_size import SIZE_STEP, landscape_sizes, network_size
from anomaly_cli.images.picture import Picture, picture_size
from anomaly_cli.images.pillow_faults import NOT_SUPPORTED, mended
from anomaly_cli.images.quality import Quality, measure_quality
from anomaly_cli.images.reasons import header_reason, reason_of
from anomaly_cli.images.tiff import HEADERS as TIFF_HEADERS
from anomaly_cli.images.tiff import open_tiff, silence_libtiff
from anomaly_cli.paths import RemotePath

WHOLE_FILE = 64 * 2**20  # bytes; a file up to this size is read once, a larger one piece by piece as its decoder asks
REDUCING_GAP = 2.0  # shrink by box averaging down to twice the target: twice as fast, within 3 gray levels
# What may decode: left out are EPS, which runs Ghostscript, and formats that Pillow names but cannot read.
# TGA has no signature, so it comes last.
FORMATS = (
    "JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "HEIF", "AVIF", "JPEG2000", "PPM", "PCX", "QOI", "PSD",
    "SGI", "DDS", "DIB", "ICO", "TGA",
)  # fmt: skip
# Signatures that no other file starts with: a header that then fails belongs to a damaged image.
CERTAIN_FORMATS = frozenset(("JPEG", "PNG", "WEBP", "TIFF", "GIF", "AVIF", "HEIF", "JPEG2000"))
HEIF_BRANDS = (b"ftypheic", b"ftypheix", b"ftyphevc", b"ftypmif1", b"ftypmsf1")
NO_HEIF = "HEIC needs the extra heif: pip install 'anomaly-cli[heif]'"
TGA_END = b"TRUEVISION-XFILE.\0"
TURN_BY_ORIENTATION = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SWAPS_SIDES = frozenset((5, 6, 7, 8))

# Name, factory, and what says of the first bytes whether the factory may take the file.
_Decoder = tuple[str, Callable[[IO[bytes], str | bytes], ImageFile.ImageFile], Callable[[bytes], object]]
_PILLOW_WARNINGS = ("ignore", None, Warning, re.compile(r"PIL\."), 0)

# Pillow logs some damage as an error; with no handler at all logging would print that to stderr.
logging.getLogger("PIL").addHandler(logging.NullHandler())


@dataclass(frozen=True)
class LoadedImage:
    """An image ready for the backbone.

    Attributes:
        pixels: (h, w, 3) uint8 RGB at network size.
        height: of the original in pixels, after its EXIF orientation.
        width: likewise.
        quality: where it was asked for.
        inspected: (h, w) pixels in the region of interest; None where all are.
        picture: the same at the resolution of tiles, where it was asked for.
    """

    pixels: NDArray[np.uint8]
    height: int
    width: int
    quality: Quality | None = None
    inspected: NDArray[np.bool_] | None = None
    picture: Picture | None = None


def load_image(
    path: Path,
    image_size: int,
    *,
    step: int = SIZE_STEP,
    window: tuple[float, float] | None = None,
    with_quality: bool = False,
    scale: float | None = None,
) -> LoadedImage:
    """Decode one image at network size; many threads may call this at the same time.

    A JPEG at least twice too large is scaled down while libjpeg decodes it, which halves the time and still
    reads every byte. For modes, alpha and orientation see `read_pixels`. With a `scale` the image also becomes a
    `Picture` of so many pixels a pixel of the file.

    Raises:
        UnreadableImageError: with the reason in a few words.
    """
    landscape_sizes(image_size, step)  # a wrong argument must not pass for an unreadable image
    with _opened(path) as (image, stream):
        width, height = image.size
        rows, columns = network_size(height, width, image_size, step)
        held = (0, 0) if scale is None else _held_size(height, width, scale)
        draft = image.draft(None, (max(columns, held[1]), max(rows, held[0])))
        image.load()
        if draft is None:  # an ICO learns its size by decoding
            width, height = image.size
            rows, columns = network_size(height, width, image_size, step)
            held = (0, 0) if scale is None else _held_size(height, width, scale)
        orientation = _orientation(image)
        box = None if draft is None else draft[1]  # the part that holds pixels, in fractions of a pixel
        flat = flattened(image, window)
        small = flat.resize((columns, rows), Image.Resampling.BICUBIC, box, REDUCING_GAP)
        pixels = _upright_pixels(small, orientation)
        large = None
        if scale is not None:
            if flat.size != held[::-1]:
                flat = flat.resize(held[::-1], Image.Resampling.BICUBIC, box, REDUCING_GAP)
            large = np.asarray(_upright(flat, orientation))
        content_hash = _content_hash(stream) if with_quality else ""
    if orientation in SWAPS_SIDES:
        height, width = width, height
    quality = measure_quality(pixels, height, width, content_hash) if with_quality else None
    picture = None if large is None or scale is None else Picture(large, *picture_size(height, width, scale))
    return LoadedImage(pixels, height, width, quality, picture=picture)


def _held_size(height: int, width: int, scale: float) -> tuple[int, int]:
    """Choose the size at which the pixels of a picture are held: that of the file, or a smaller one of its tiles."""
    rows, columns = picture_size(height, width, scale)
    return (rows, columns) if rows <= height and columns <= width else (height, width)


def read_size(path: Path) -> tuple[int, int]:
    """Read (height, width) of an image in pixels, after its EXIF orientation, from its header.

    Raises:
        UnreadableImageError: with the reason in a few words.
    """
    with _opened(path) as (image, _):
        width, height = image.size
        return (width, height) if _orientation(image) in SWAPS_SIDES else (height, width)


def _content_hash(stream: io.BytesIO | io.BufferedReader) -> str:
    stream.seek(0)
    return hashlib.file_digest(stream, "sha256").hexdigest()


def read_pixels(path: Path, window: tuple[float, float] | None = None) -> NDArray[np.uint8]:
    """Decode one image at full resolution.

    The EXIF orientation is applied, alpha is composited on white, and of several frames or pages the first
    is read, in a TIFF the first that is no reduced copy. Unsigned samples are scaled by the full range of their
    bits, never by the picture's own, so 12-bit data stored in 16 bits looks dark. Signed samples are taken as if
    they were unsigned, up to 16 bit: below zero is black, 65535 white. Floats within [0, 1] or [0, 255] are taken as
    such; only others are stretched between their finite extremes. A window says which values of grey deeper than
    8 bit become black and white instead.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        UnreadableImageError: with the reason in a few words.
    """
    with _opened(path) as (image, _):
        image.load()
        return _upright_pixels(flattened(image, window), _orientation(image))


def read_deep_gray(path: Path) -> NDArray[Any] | None:
    """Read (H, W) values of a grey image of more than 8 bit, or nothing where it is of another kind.

    Raises:
        UnreadableImageError: as `read_pixels`.
    """
    with _opened(path) as (image, _):
        image.load()
        return np.asarray(image) if image.mode == "F" or image.mode.startswith("I") else None


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Image.Image, io.BytesIO | io.BufferedReader]]:
    """Open an image undecoded beside its bytes and turn every failure, also of the caller's block, into its reason."""
    # Not `catch_warnings`: it swaps a list that all threads share. Hosts may swap it, hence a look each time.
    if _PILLOW_WARNINGS not in warnings.filters:
        warnings.filterwarnings("ignore", module=r"PIL\.")
    missing = 0
    try:
        with _stream(path) as stream:
            image = _identified(stream)
            check_cost(image, stream)
            missing = image.info.get("bytes", 0) - stream.seek(0, os.SEEK_END)
            yield image, stream
    except UnreadableImageError:
        raise
    except Exception as error:  # decoders raise whatever their parsing stumbles over
        raise UnreadableImageError(reason_of(error, max(0, missing))) from error


@contextmanager
def _stream(path: Path) -> Iterator[io.BytesIO | io.BufferedReader]:
    if isinstance(path, RemotePath):
        yield io.BytesIO(path.read_bytes())
        return
    _check_regular(path)
    with path.open("rb") as file:
        yield io.BytesIO(file.read()) if os.fstat(file.fileno()).st_size <= WHOLE_FILE else file


def _check_regular(path: Path) -> None:
    """Look before opening: opening a FIFO waits for a writer, opening a device may do anything."""
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        raise UnreadableImageError("is a directory" if stat.S_ISDIR(mode) else "not a regular file")


@cache
def _decoders() -> list[_Decoder]:
    Image.init()
    silence_libtiff()
    known = [(name, *Image.OPEN[name]) for name in FORMATS if name in Image.OPEN]
    return [(name, factory, accept or (lambda _: True)) for name, factory, accept in known]


def _identified(stream: BinaryIO) -> Image.Image:
    """Do what `Image.open` does, less its bomb check, whose limit is one setting for the whole process."""
    prefix = stream.read(16)
    if not prefix:
        raise UnreadableImageError("empty file")
    heif = prefix[4:].startswith(HEIF_BRANDS)  # some of these brands may hold AVIF as well
    decoders = _decoders()
    if prefix.startswith(TIFF_HEADERS):
        return open_tiff(stream)
    for name, factory, accept in decoders:
        answer = accept(prefix)
        if not answer or isinstance(answer, str):  # a string: this build of Pillow lacks the library
            continue
        stream.seek(0)
        try:
            # Without a name: Pillow would map some files, and one cut short while mapped ends the process.
            return mended(factory(stream, ""), stream)
        except (SyntaxError, IndexError, TypeError, KeyError, struct.error) as error:
            if name in CERTAIN_FORMATS and not heif:
                raise UnreadableImageError(header_reason(name, error)) from error
    if heif:
        return _opened_heif(stream)
    stream.seek(-min(len(TGA_END), stream.seek(0, os.SEEK_END)), os.SEEK_END)
    raise UnreadableImageError(f"{NOT_SUPPORTED}TGA of an odd depth" if stream.read() == TGA_END else "not an image")


def _opened_heif(stream: BinaryIO) -> Image.Image:
    try:
        from pillow_heif.as_plugin import HeifImageFile  # not registered with Pillow: that would be a setting of it
    except ImportError as error:
        raise UnreadableImageError(NO_HEIF) from error
    stream.seek(0)
    image: Image.Image = HeifImageFile(stream, "")  # type: ignore[no-untyped-call]
    return image


def _orientation(image: Image.Image) -> int:
    """Read the EXIF orientation that is still to be applied: Pillow turns a TIFF while decoding it."""
    for name in ("xmp", "XML:com.adobe.xmp"):  # where Pillow looks as well, and browsers do not
        image.info.pop(name, None)
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # damaged metadata in an image that decodes must not cost the image
        return 1
    return orientation if isinstance(orientation, int) else 1


def _upright_pixels(image: Image.Image, orientation: int) -> NDArray[np.uint8]:
    image = _upright(image, orientation)
    return np.array(image if image.mode == "RGB" else image.convert("RGB"), dtype=np.uint8)


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    turn = TURN_BY_ORIENTATION.get(orientation)
    return image if turn is None else image.transpose(turn)
