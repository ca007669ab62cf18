"""Find image files and read them as 8-bit RGB; a file that cannot be read is one short reason, never a crash.

Reads only: it must not print, warn, write, or change a setting of Pillow's that other code depends on.
"""

from __future__ import annotations

import ctypes
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
from typing import IO, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, _imaging

from anomaly_cli.errors import UnreadableImageError
from anomaly_cli.images import decode
from anomaly_cli.images.decode_limits import check_cost
from anomaly_cli.images.network_size import landscape_sizes, network_size
from anomaly_cli.images.quality import Quality, measure_quality
from anomaly_cli.paths import RemotePath

WHOLE_FILE = 64 * 2**20  # bytes; a file up to this size is read once, a larger one piece by piece as its decoder asks
MAX_REASON_LENGTH = 120  # characters
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


GRAY_OF_16_BIT = ((np.arange(65536) + 128) // 257).astype(np.uint8)  # 65535 -> 255, rounded


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
    """

    pixels: NDArray[np.uint8]
    height: int
    width: int
    quality: Quality | None = None


def load_image(path: Path, image_size: int, *, with_quality: bool = False) -> LoadedImage:
    """Decode one image at network size; many threads may call this at the same time.

    A JPEG at least twice too large is scaled down while libjpeg decodes it, which halves the time and still
    reads every byte. For modes, alpha and orientation see `read_pixels`.

    Raises:
        UnreadableImageError: with the reason in a few words.
    """
    landscape_sizes(image_size)  # a wrong argument must not pass for an unreadable image
    with _opened(path) as (image, stream):
        width, height = image.size
        rows, columns = network_size(height, width, image_size)
        draft = image.draft(None, (columns, rows))
        image.load()
        if draft is None:  # an ICO learns its size by decoding
            width, height = image.size
            rows, columns = network_size(height, width, image_size)
        orientation = _orientation(image)
        box = None if draft is None else draft[1]  # the part that holds pixels, in fractions of a pixel
        image = _flattened(image).resize((columns, rows), Image.Resampling.BICUBIC, box, REDUCING_GAP)
        pixels = _upright_pixels(image, orientation)
        content_hash = _content_hash(stream) if with_quality else ""
    if orientation in SWAPS_SIDES:
        height, width = width, height
    quality = measure_quality(pixels, height, width, content_hash) if with_quality else None
    return LoadedImage(pixels, height, width, quality)


def _content_hash(stream: io.BytesIO | io.BufferedReader) -> str:
    stream.seek(0)
    return hashlib.file_digest(stream, "sha256").hexdigest()


def read_pixels(path: Path) -> NDArray[np.uint8]:
    """Decode one image at full resolution.

    The EXIF orientation is applied, alpha is composited on white, and of several frames or pages the first
    is read. Integer gray deeper than 8 bit is scaled by the full 16-bit range, never by the picture's own,
    so 12-bit data stored in 16 bits looks dark and 32-bit values above 65535 are white. Float gray within
    [0, 1] or [0, 255] is taken as such; only other floats are stretched between their finite extremes.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        UnreadableImageError: with the reason in a few words.
    """
    with _opened(path) as (image, _):
        image.load()
        return _upright_pixels(_flattened(image), _orientation(image))


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Image.Image, io.BytesIO | io.BufferedReader]]:
    """Open an image undecoded beside its bytes and turn every failure, also of the caller's block, into its reason."""
    # Not `catch_warnings`: it swaps a list that all threads share. Hosts may swap it, hence a look each time.
    if _PILLOW_WARNINGS not in warnings.filters:
        warnings.filterwarnings("ignore", module=r"PIL\.")
    try:
        with _stream(path) as stream:
            image = _identified(stream)
            check_cost(image, stream)
            yield image, stream
    except UnreadableImageError:
        raise
    except Exception as error:  # decoders raise whatever their parsing stumbles over
        raise UnreadableImageError(_reason(error)) from error


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
    decode.silence()
    known = [(name, *Image.OPEN[name]) for name in FORMATS if name in Image.OPEN]
    return [(name, factory, accept or (lambda _: True)) for name, factory, accept in known]


def _identified(stream: BinaryIO) -> ImageFile.ImageFile:
    """Do what `Image.open` does, less its bomb check, whose limit is one setting for the whole process."""
    prefix = stream.read(16)
    if not prefix:
        raise UnreadableImageError("empty file")
    heif = prefix[4:].startswith(HEIF_BRANDS)  # some of these brands may hold AVIF as well
    for name, factory, accept in _decoders():
        answer = accept(prefix)
        if not answer or isinstance(answer, str):  # a string: this build of Pillow lacks the library
            continue
        stream.seek(0)
        try:
            # Without a name: Pillow would map some files, and one cut short while mapped ends the process.
            return factory(stream, "")
        except (SyntaxError, IndexError, TypeError, KeyError, struct.error) as error:
            if name in CERTAIN_FORMATS and not heif:
                kind = "truncated" if _is_cut_short(error) else "cannot be decoded"
                raise UnreadableImageError(_one_line(f"{kind}: bad {name} header ({error})")) from error
    if heif:
        raise UnreadableImageError("no decoder for HEIC")
    raise UnreadableImageError("not an image")


def _reason(error: Exception) -> str:
    detail = str(error) or type(error).__name__
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        reason = "no such file"
    elif isinstance(error, PermissionError):
        reason = "permission denied"
    elif isinstance(error, OSError) and error.strerror:
        reason = f"cannot be read: {error.strerror}"
    elif isinstance(error, Image.DecompressionBombError):  # a frame or tile inside the file
        reason = f"too large: {detail}"
    elif isinstance(error, MemoryError):
        reason = "cannot be decoded: not enough memory"
    elif _is_cut_short(error):
        reason = f"truncated: {detail}"
    else:
        reason = f"cannot be decoded: {detail}"
    return _one_line(reason)


def _is_cut_short(error: Exception) -> bool:
    end_reached = isinstance(error, EOFError) or isinstance(error.__cause__, EOFError | struct.error)
    return end_reached or "truncated" in str(error).lower() or "EOF" in str(error)


def _one_line(text: str) -> str:
    """Bring a decoder's message into one table cell: no line breaks, no control characters, not too long."""
    text = " ".join(text.split())
    text = "".join(character if character.isprintable() else "?" for character in text)
    return text if len(text) <= MAX_REASON_LENGTH else text[: MAX_REASON_LENGTH - 3] + "..."


def _orientation(image: Image.Image) -> int:
    """Read the EXIF orientation that is still to be applied: Pillow turns a TIFF while decoding it."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # damaged metadata in an image that decodes must not cost the image
        return 1
    return orientation if isinstance(orientation, int) else 1


def _upright_pixels(image: Image.Image, orientation: int) -> NDArray[np.uint8]:
    if orientation in TURN_BY_ORIENTATION:
        image = image.transpose(TURN_BY_ORIENTATION[orientation])
    return np.array(image if image.mode == "RGB" else image.convert("RGB"), dtype=np.uint8)


def _flattened(image: Image.Image) -> Image.Image:
    """Bring any mode to 8 bit without alpha: RGB, or L for gray, which resizes three times faster."""
    if image.mode == "F":
        return Image.fromarray(_gray_of_floats(np.asarray(image)))
    if image.mode.startswith("I"):
        return Image.fromarray(_gray_of_integers(image))
    if image.has_transparency_data:
        # Pillow turns a premultiplied gray only into a plain one.
        rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        canvas = Image.new("RGB", image.size, "white")
        canvas.paste(rgba, mask=rgba)
        return canvas
    if image.mode in ("L", "RGB"):
        return image
    return image.convert("L" if image.mode == "1" else "RGB")


def _gray_of_integers(image: Image.Image) -> NDArray[np.uint8]:
    values = np.asarray(image)  # (H, W), 16-bit unsigned or 32-bit signed
    in_range = values if values.dtype.itemsize == 2 else values.clip(0, 65535)
    gray: NDArray[np.uint8] = GRAY_OF_16_BIT[in_range]
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        gray[values == transparent] = 255
    return gray


def _gray_of_floats(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Turn (H, W) floats into gray; not-a-number becomes black, infinities the nearer end."""
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    if low >= 0 and high <= 255:
        low, high = 0.0, 1.0 if high <= 1 else 255.0
    with np.errstate(invalid="ignore"):
        scaled = (values.astype(np.float64) - low) / max(high - low, 1e-300)
    gray: NDArray[np.uint8] = (np.nan_to_num(scaled.clip(0, 1)) * 255).round().astype(np.uint8)
    return gray


def silence() -> None:
    """Take libtiff's printing away for this process; what it tells by return values stays.

    Pillow has no setting for that. Where its build hides the functions of libtiff, damaged TIFF files go on printing.
    """
    library = ctypes.CDLL(_imaging.__file__)  # a symbol is looked up in the libraries that it is linked with, too
    for name in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
        function = getattr(library, name, None)
        if function is not None:
            function.argtypes, function.restype = [ctypes.c_void_p], ctypes.c_void_p
            function(None)
