"""Tell copies from other parts in the same pose: `python -m benchmarks.accuracy.near_duplicates DIR...`.

Each DIR is one set of photographs that are taken for distinct. Every image is also written anew as JPEG of quality 70,
at half its size, and 5 % brighter and darker. Printed are, a set, how many bits of the hash differ between the
nearest of the distinct ones, how many at most between an image and its copies, and what comes out at the threshold in
use: distinct images joined to another, and copies found.
"""

from __future__ import annotations

import argparse
import io
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from anomaly_cli.config import DetectorConfig
from anomaly_cli.errors import UnreadableImageError
from anomaly_cli.images.decode import load_image
from anomaly_cli.images.duplicates import MAX_BRIGHTNESS_STEP, MAX_HASH_BITS, group_near_duplicates
from anomaly_cli.images.find import find_images
from anomaly_cli.images.quality import Quality
from anomaly_cli.scoring.parallel import parallel_map, worker_count

CLOSEST_SHOWN = 3


def _half(image: Image.Image) -> Image.Image:
    return image.resize((max(1, image.width // 2), max(1, image.height // 2)), Image.Resampling.LANCZOS)


COPIES: dict[str, tuple[Callable[[Image.Image], Image.Image], str]] = {
    "JPEG quality 70": (lambda image: image, "JPEG"),
    "half size": (_half, "PNG"),
    "5 % brighter": (lambda image: image.point(lambda level: min(255, round(level * 1.05))), "PNG"),
    "5 % darker": (lambda image: image.point(lambda level: round(level * 0.95)), "PNG"),
}


@dataclass(frozen=True)
class Measured:
    """One original and its copies, in the order of `COPIES`."""

    path: Path
    original: Quality
    copies: list[Quality]


def measure(path: Path, image_size: int) -> Measured | None:
    """Measure an image and its copies as `anomaly score` would; None if it cannot be read."""
    try:
        original = _quality(path, image_size)
    except UnreadableImageError:
        return None
    with Image.open(path) as opened:
        image = opened.convert("L" if opened.mode in ("L", "1") else "RGB")
    copies = []
    with tempfile.TemporaryDirectory() as folder:
        for change, file_format in COPIES.values():
            content = io.BytesIO()
            change(image).save(content, file_format, quality=70)
            copy = Path(folder) / "copy"
            copy.write_bytes(content.getvalue())
            copies.append(_quality(copy, image_size))
    return Measured(path, original, copies)


def _quality(path: Path, image_size: int) -> Quality:
    quality = load_image(path, image_size, with_quality=True).quality
    if quality is None:
        raise ValueError(f"no quality of {path}")
    return quality


def bits_of(qualities: list[Quality]) -> NDArray[np.float32]:
    """Unpack perceptual hashes: (N, bits) of 0 and 1."""
    packed = np.frombuffer(bytes.fromhex("".join(quality.perceptual_hash for quality in qualities)), np.uint8)
    return np.unpackbits(packed.reshape(len(qualities), -1), axis=1).astype(np.float32)


def differing_bits(bits: NDArray[np.float32]) -> NDArray[np.int64]:
    """Count the bits that differ between every two of (N, bits): (N, N)."""
    both = bits @ (1 - bits).T
    counted: NDArray[np.int64] = np.rint(both + both.T).astype(np.int64)
    return counted


def report(folder: Path, measured: list[Measured]) -> None:
    """Print the figures of one set."""
    originals = [each.original for each in measured]
    bits = bits_of(originals)
    light = np.array([quality.brightness for quality in originals])
    distances = differing_bits(bits)
    distances[np.abs(light[:, None] - light) > MAX_BRIGHTNESS_STEP] = bits.shape[1]  # never joined, whatever their bits
    first, second = np.triu_indices(len(originals), 1)
    nearest = np.argsort(distances[first, second], kind="stable")[:CLOSEST_SHOWN]
    groups = _groups(originals)
    print(f"{folder}: {len(originals)} images, {np.count_nonzero(groups)} joined to another in {groups.max()} groups")
    for pair in nearest:
        a, b = first[pair], second[pair]
        print(f"    {distances[a, b]:4d} bits  {os.fspath(measured[a].path)}  {os.fspath(measured[b].path)}")
    for number, name in enumerate(COPIES):
        copies = [each.copies[number] for each in measured]
        own = np.abs(bits - bits_of(copies)).sum(axis=1)
        joined = _groups([*originals, *copies])
        found = np.mean((joined[: len(originals)] == joined[len(originals) :]) & (joined[: len(originals)] > 0))
        print(f"  {name:<16} {found:7.2%} found   {np.quantile(own, 0.99):4.0f} bits at 99 %, {own.max():4.0f} at most")


def _groups(qualities: list[Quality]) -> NDArray[np.int64]:
    return group_near_duplicates(
        [quality.content_hash for quality in qualities],
        [quality.perceptual_hash for quality in qualities],
        [quality.brightness for quality in qualities],
    )


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sets", type=Path, nargs="+", metavar="DIR", help="folder of distinct images")
    parser.add_argument("--image-size", type=int, default=DetectorConfig().image_size)
    args = parser.parse_args()
    print(f"joined are images that differ in at most {MAX_HASH_BITS} bits and {MAX_BRIGHTNESS_STEP} of brightness")
    for folder in args.sets:
        paths = find_images([folder])
        results = parallel_map(lambda path: measure(path, args.image_size), paths, worker_count())
        report(folder, [result for result in results if result is not None])


if __name__ == "__main__":
    main()
