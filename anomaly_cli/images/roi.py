"""Regions of interest: masks that say which part of an image is inspected; prints and writes nothing."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from anomaly_cli.config import RoiKind
from anomaly_cli.errors import ConfigError, UnreadableImageError
from anomaly_cli.images.decode import LoadedImage, read_pixels
from anomaly_cli.images.find import IMAGE_SUFFIXES

Mask = NDArray[np.bool_]

ASPECT_TOLERANCE = 0.02  # relative difference of the aspect ratios of an image and its mask
HALF = 0.5  # of a pixel or cell: from this share up it is inspected


@dataclass(frozen=True)
class SharedRoi:
    """One region of interest for all images.

    Attributes:
        mask: (H, W), true where inspected, somewhere at least.
        source: what it is called in errors.
    """

    mask: Mask
    source: str
    kind: ClassVar = RoiKind.ONE

    def mask_of(self, path: Path, height: int, width: int) -> Mask:
        """Return the mask of an image of this size, at the size of its file.

        Raises:
            ConfigError: the aspect ratios differ.
        """
        _check_aspect(self.mask, self.source, path, height, width)
        return self.mask

    @property
    def digest(self) -> str:
        """Hash all that a score may depend on."""
        return hashlib.sha256(f"{self.mask.shape}".encode() + np.packbits(self.mask).tobytes()).hexdigest()

    def check_names(self, _paths: list[Path]) -> None:
        """Accept every name."""


@dataclass(frozen=True)
class RoiFolder:
    """One region of interest for each file name, in a folder.

    Attributes:
        folder: of the masks.
    """

    folder: Path
    kind: ClassVar = RoiKind.BY_NAME

    def mask_of(self, path: Path, height: int, width: int) -> Mask:
        """Read the mask of an image of this size: (H', W'), true where inspected.

        Raises:
            ConfigError: there is none, it cannot be read, is black, or the aspect ratios differ.
        """
        source = self._find(path)
        mask = read_mask(source)
        _check_aspect(mask, str(source), path, height, width)
        return mask

    @property
    def digest(self) -> str:
        """Hash all that a score may depend on: the contents of the masks."""
        digest = hashlib.sha256()
        for name in sorted(self._files):
            digest.update(os.fsencode(name) + hashlib.sha256(self._files[name].read_bytes()).digest())
        return digest.hexdigest()

    def check_names(self, paths: list[Path]) -> None:
        """Check that each of these images has a mask; none is read.

        Raises:
            ConfigError: one has none.
        """
        for path in paths:
            self._find(path)

    def _find(self, path: Path) -> Path:
        """Find `FOLDER/PARENT/STEM.*`, where PARENT is the folder of the image, or else `FOLDER/STEM.*`."""
        for name in (f"{path.parent.name}/{path.stem}", path.stem):
            if name in self._files:
                return self._files[name]
        raise ConfigError(f"{self.folder} holds no mask for {path}: it must be called {path.stem}.png")

    @cached_property
    def _files(self) -> dict[str, Path]:
        """Index the pictures below the folder by their path without suffix.

        Raises:
            ConfigError: two differ in the suffix only.
        """
        found: dict[str, Path] = {}
        for directory, _, names in os.walk(self.folder):
            for file in (Path(directory, name) for name in sorted(names)):
                if file.suffix.lower() in IMAGE_SUFFIXES:
                    name = file.relative_to(self.folder).with_suffix("").as_posix()
                    if name in found:
                        raise ConfigError(f"{found[name]} and {file}: one mask a file is needed")
                    found[name] = file
        return found


Roi = SharedRoi | RoiFolder


def open_roi(path: Path) -> Roi:
    """Open what `--roi` names: a mask for all images, or a folder with one a file.

    Raises:
        ConfigError: it does not exist, or the mask cannot be read or is black.
    """
    if path.is_dir():
        return RoiFolder(path)
    if not path.exists():
        raise ConfigError(f"--roi: no such file or folder: {path}")
    return SharedRoi(read_mask(path), str(path))


def read_mask(path: Path) -> Mask:
    """Read a mask: (H, W), true where it is white.

    Grey levels from 128 are white; in a mask of zeros and ones, 1 is.

    Raises:
        ConfigError: it cannot be read, or is black everywhere.
    """
    try:
        grey = read_pixels(path).max(axis=2)
    except UnreadableImageError as error:
        raise ConfigError(f"{path} cannot be read as a mask: {error.reason}") from error
    mask: Mask = grey >= (128 if grey.max() > 1 else 1)
    if not mask.any():
        raise ConfigError(f"{path} is black: a region of interest is white where images are inspected")
    return mask


def restrict(image: LoadedImage, mask: Mask) -> LoadedImage:
    """Restrict an image to its region of interest.

    Every ignored pixel gets the mean colour of the inspected ones: nothing of what was there reaches the network.

    Args:
        image: at network size.
        mask: of any size, true where inspected, somewhere at least.
    """
    inspected = resize_mask(mask, *image.pixels.shape[:2])
    pixels = image.pixels.copy()
    pixels[~inspected] = np.rint(pixels[inspected].mean(axis=0)).astype(np.uint8)
    picture = image.picture
    if picture is not None:
        red, green, blue = pixels[~inspected][0].tolist() if not inspected.all() else (0, 0, 0)
        picture = replace(picture, inspected=mask, fill=(red, green, blue))
    return replace(image, pixels=pixels, inspected=inspected, picture=picture)


def inspected_part(image: LoadedImage) -> NDArray[np.uint8]:
    """Cut the box around the region of interest out of an image at network size: (h, w, 3)."""
    if image.inspected is None:
        return image.pixels
    rows, columns = (np.flatnonzero(image.inspected.any(axis=axis)) for axis in (1, 0))
    return image.pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def resize_mask(mask: Mask, height: int, width: int) -> Mask:
    """Resize a mask: a pixel is inspected if at least half of it is, or, where no pixel is, as much as of any other."""
    shares = np.asarray(Image.fromarray(mask.astype(np.float32)).resize((width, height), Image.Resampling.BOX))
    resized: Mask = shares >= min(HALF, shares.max())
    return resized


def _check_aspect(mask: Mask, source: str, path: Path, height: int, width: int) -> None:
    rows, columns = mask.shape
    # Half a pixel of the shorter side, too: a small mask of a long image cannot have just its aspect.
    tolerance = ASPECT_TOLERANCE + 0.5 / min(rows, columns, height, width)
    if abs(rows * width / (columns * height) - 1) > tolerance:
        raise ConfigError(
            f"{path} has {width} x {height} pixels, its region of interest {source} has {columns} x {rows}: "
            "a mask must be as large as its image, or have the same aspect ratio"
        )
