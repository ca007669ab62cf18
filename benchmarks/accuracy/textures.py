"""Make seeded photographs of nothing in particular, for measuring speed and memory where no pictures are at hand."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np
from PIL import Image

from anomaly_cli.images.find import find_images

DISTINCT = 50  # pictures are drawn; further files are links to them, which cost the reader the same


def write_textures(folder: Path, count: int, side: int, seed: int = 0) -> list[Path]:
    """Write `count` textured JPEG files of `side` pixels squared; every tenth has a blot.

    Drawing is slow and reading is what is measured, so files beyond the first `DISTINCT` are hard links.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{i:05d}.jpg" for i in range(count)]
    for i, path in enumerate(paths):
        if i < DISTINCT:
            _texture(np.random.default_rng([seed, i]), side, blot=i % 10 == 9).save(path, quality=90)
        else:
            os.link(paths[i % DISTINCT], path)
    return paths


def add_image_options(parser: argparse.ArgumentParser, incoming: int) -> None:
    """Describe the options that `images_of` reads; `incoming` is the default of how many images are scored."""
    parser.add_argument("--files", type=Path, help="folder of images; textures are made if it is not given")
    parser.add_argument("--normal", type=int, default=100, help="images to train on")
    parser.add_argument("--incoming", type=int, default=incoming, help="images to score")
    parser.add_argument("--side", type=int, default=512, help="pixels, of the textures")


def images_of(parser: argparse.ArgumentParser, args: argparse.Namespace, folder: Path) -> list[Path]:
    """Find or make the images to train on and to score, in this order; ends the program where there are too few."""
    count = args.normal + args.incoming
    if args.files is None:
        return write_textures(folder, count, args.side)
    paths = find_images([args.files])[:count]
    if len(paths) < count:
        parser.error(f"{args.files} holds {len(paths)} images, {count} are needed")
    return paths


def write_distinct(folder: Path, count: int, side: int, seed: int = 0) -> list[Path]:
    """Write `count` small JPEG files, no two alike, in a fraction of a millisecond each.

    Every picture has its own blobs of colour on a grain that all share; each hundredth has a bright square.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([seed, 1])
    grain = np.random.default_rng(0).normal(0, 12, (side, side, 3)).astype(np.float32)
    paths = [folder / f"{i:06d}.jpg" for i in range(count)]
    for i, path in enumerate(paths):
        blobs = rng.integers(70, 186, (6, 6, 3), np.uint8)
        pixels = np.asarray(Image.fromarray(blobs).resize((side, side), Image.Resampling.BICUBIC)) + grain
        if i % 100 == 99:
            y, x = rng.integers(0, side * 3 // 4, 2)
            pixels[y : y + side // 4, x : x + side // 4] = 250
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=90)
    return paths


def _texture(rng: np.random.Generator, side: int, *, blot: bool) -> Image.Image:
    """Weave coloured noise of several wavelengths into (side, side) RGB."""
    total = np.zeros((side, side, 3), np.float32)
    for cells in (4, 16, 64, side):
        noise = rng.normal(size=(cells, cells, 3)).astype(np.float32)
        channels = [Image.fromarray(noise[..., c]).resize((side, side), Image.Resampling.BICUBIC) for c in range(3)]
        total += np.stack([np.asarray(channel) for channel in channels], axis=2)
    if blot:
        y, x = rng.integers(0, side * 3 // 4, 2)
        total[y : y + side // 4, x : x + side // 4] += 4
    return Image.fromarray((127 + 25 * total).clip(0, 255).astype(np.uint8))
