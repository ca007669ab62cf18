"""Refuse images that cost far more time and memory than their files let expect; nothing is decoded to find out."""

from __future__ import annotations

import os
from typing import BinaryIO

from PIL import Image

from anomaly_cli.errors import UnreadableImageError

MAX_PIXELS = 500_000_000
FREE_BYTES = 160_000_000  # decoded; up to here, about 2 s, an image may come from as small a file as it likes
MAX_EXPANSION = 100  # decoded bytes a byte of the file; pictures of this size stay far below
FREE_SCANNED = 500_000_000  # pixels times scans; about 1 s
MAX_SCANS = 20  # of a JPEG above that; encoders write up to a dozen
START_OF_SCAN = b"\xff\xda"
CHUNK_BYTES = 2**24
BYTES_A_PIXEL = {"I": 4, "F": 4, "I;16": 2, "I;16B": 2, "I;16L": 2}  # in memory; other modes have one a band


def check_cost(image: Image.Image, stream: BinaryIO) -> None:
    """Refuse an opened, undecoded image that is too large, or a bomb: too large for a file so small.

    A JPEG is shrunk while it is decoded, so that its pixels cost little; but each of its scans, which may take a few
    bytes only, goes over the whole picture.

    Args:
        image: as its factory returned it.
        stream: its file; the position is kept.

    Raises:
        UnreadableImageError: with the numbers.
    """
    width, height = image.size
    decoded = width * height * BYTES_A_PIXEL.get(image.mode, len(image.getbands()))
    if image.format not in ("JPEG", "MPO"):
        check_size(width, height, decoded, stream)
        return
    _check_pixels(width, height)
    scans = _count_scans(stream)
    if scans * width * height > FREE_SCANNED and (scans > MAX_SCANS or decoded > MAX_EXPANSION * _size(stream)):
        raise UnreadableImageError(f"too large: {scans} scans of {width} x {height} pixels")


def check_size(width: int, height: int, decoded: int, stream: BinaryIO) -> None:
    """Refuse a picture of too many pixels, or of too many decoded bytes for a file so small.

    Args:
        width: in pixels.
        height: in pixels.
        decoded: bytes that the picture takes in memory.
        stream: its file; the position is kept.

    Raises:
        UnreadableImageError: with the numbers.
    """
    _check_pixels(width, height)
    size = _size(stream)
    if decoded > FREE_BYTES and decoded > MAX_EXPANSION * size:
        raise UnreadableImageError(f"too large: {decoded / 1e6:.0f} MB of pixels in a file of {size} bytes")


def _check_pixels(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise UnreadableImageError(f"too large: {width} x {height} pixels, the limit is {MAX_PIXELS} pixels")


def _size(stream: BinaryIO) -> int:
    place = stream.tell()
    size = stream.seek(0, os.SEEK_END)
    stream.seek(place)
    return size


def _count_scans(stream: BinaryIO) -> int:
    """Count the markers: within the data of a scan a byte 255 is followed by 0, so that none looks like one."""
    place = stream.tell()
    stream.seek(0)
    scans = 0
    while chunk := stream.read(CHUNK_BYTES):
        scans += chunk.count(START_OF_SCAN)
    stream.seek(place)
    return scans
