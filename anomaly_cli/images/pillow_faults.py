"""Put right what Pillow reads wrongly in PNG, BMP and TGA files; TIFF has a module of its own."""

from __future__ import annotations

import io
import struct
from typing import BinaryIO

from PIL import BmpImagePlugin, Image, ImageFile

from anomaly_cli.errors import UnreadableImageError

NOT_SUPPORTED = "sound file of a kind that is not supported: "
BITFIELDS = 3  # of BMP's compressions
GRAY_STEP = {2: 85, 4: 17}  # from the numbers of so many bits to gray levels
IGNORE, IGNORE_WHERE_ALL_ZERO, REFUSE_WHERE_MIXED = "ignore", "ignore where all zero", "refuse where mixed"


def mended(image: ImageFile.ImageFile, stream: BinaryIO) -> Image.Image:
    """Return an opened, undecoded image so that decoding and then `settled` give the right pixels.

    Args:
        image: as its factory returned it.
        stream: its file.

    Raises:
        UnreadableImageError: of a kind that is not supported.
    """
    if image.format not in ("PNG", "BMP", "TGA"):
        return image
    place = stream.tell()
    stream.seek(0)
    header = stream.read(70)
    try:
        if image.format == "PNG":
            return _png(image, header)
        if image.format == "BMP":
            return _bmp(image, header, stream)
        return _tga(image, header)
    finally:
        stream.seek(place)


def settled(image: Image.Image) -> Image.Image:
    """Take an alpha away that the decoded image's format does not mean.

    Raises:
        UnreadableImageError: readers disagree about what it means.
    """
    rule = image.info.get("alpha")
    if rule is None or not image.has_transparency_data:
        return image
    if rule != IGNORE:
        low, high = image.convert("RGBA").getchannel("A").getextrema()
        if low != high and rule == REFUSE_WHERE_MIXED:
            raise UnreadableImageError(f"{NOT_SUPPORTED}16-bit TGA with alpha")
        if high and rule == IGNORE_WHERE_ALL_ZERO:
            return image
    return image.convert("L" if image.mode == "LA" else "RGBA").convert("L" if image.mode == "LA" else "RGB")


def _png(image: Image.Image, header: bytes) -> Image.Image:
    """The transparent colour of a PNG is in numbers of its own depth, Pillow's pixels are in 8 bit."""
    bits, transparent = header[24], image.info.get("transparency")
    if image.mode == "L" and isinstance(transparent, int):
        image.info["transparency"] = transparent * GRAY_STEP.get(bits, 1)
    if image.mode == "RGB" and bits == 16 and transparent is not None:
        raise UnreadableImageError(f"{NOT_SUPPORTED}16-bit RGB PNG with a transparent colour")
    return image


def _bmp(image: Image.Image, header: bytes, stream: BinaryIO) -> Image.Image:
    (size,) = struct.unpack_from("<I", header, 14)
    if size == 12:
        return image
    start, (width, height) = struct.unpack_from("<I", header, 10)[0], image.size
    bits, compression = struct.unpack_from("<HI", header, 28)
    if compression in (0, BITFIELDS):
        image.info["bytes"] = start + (width * bits + 31) // 32 * 4 * height
    if compression == BITFIELDS and bits == 16 and size >= 56 and struct.unpack_from("<I", header, 66)[0]:
        raise UnreadableImageError(f"{NOT_SUPPORTED}16-bit BMP with alpha")
    image.info["alpha"] = IGNORE_WHERE_ALL_ZERO
    if compression == 0 and (bits, image.mode) in ((4, "1"), (8, "1"), (4, "L")):
        # Pillow drops a palette of grays and with it the number of bits. With one colour more it does not.
        stream.seek(0)
        content = bytearray(stream.read())
        struct.pack_into("<I", content, 46, 2**bits + 1)
        return BmpImagePlugin.BmpImageFile(io.BytesIO(content), "")
    return image


def _tga(image: ImageFile.ImageFile, header: bytes) -> Image.Image:
    if not image.tile:
        raise UnreadableImageError(f"{NOT_SUPPORTED}{header[16]}-bit TGA")
    alpha_bits, depth = header[17] & 15, header[7] if header[1] else header[16]
    if alpha_bits == 0 and image.mode == "LA":
        raise UnreadableImageError(f"{NOT_SUPPORTED}16-bit grey TGA")
    one_bit = depth == 16 and image.mode != "LA"
    rule = REFUSE_WHERE_MIXED if one_bit else IGNORE_WHERE_ALL_ZERO
    image.info["alpha"] = rule if alpha_bits else IGNORE
    return image
