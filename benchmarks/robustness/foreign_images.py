"""Read a folder of other people's image files and compare with Pillow: `… foreign_images --data DIR`.

Every file is scored by the real command and read once more here; what Pillow makes of it, laid on white and turned as
its EXIF says, should be the same to one grey level. Where the two differ the file is named: Pillow may be the one that
is wrong. Exits with 1 where the command crashed, lost a file, printed something or took longer than `SLOWEST_S` over a
file.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from anomaly_cli.errors import UnreadableImageError
from anomaly_cli.images.decode import read_pixels
from anomaly_cli.images.find import find_images
from benchmarks.robustness.malformed import score, train_model

SAME = 1  # grey level
DEEP_MODES = ("F", "I", "I;16", "I;16B", "I;16L", "I;16N")  # which Pillow has no rule to bring to 8 bit


@dataclass
class Agreement:
    """How what the product reads compares with what Pillow reads.

    Attributes:
        same: files with the same pixels.
        deep: files with grey of more than 8 bit, which cannot be compared.
        different: name: the largest difference in grey levels, or both sizes.
        only_here: files that Pillow refuses.
        only_pillow: name: our reason.
        neither: files that nobody reads.
    """

    same: int = 0
    deep: int = 0
    different: dict[str, str] = field(default_factory=dict)
    only_here: list[str] = field(default_factory=list)
    only_pillow: dict[str, str] = field(default_factory=dict)
    neither: int = 0


def compare(paths: Sequence[Path]) -> Agreement:
    """Read each file with the product and with Pillow."""
    agreement = Agreement()
    for path in paths:
        ours, theirs = _ours(path), _theirs(path)
        if isinstance(ours, str):
            if theirs is None:
                agreement.neither += 1
            else:
                agreement.only_pillow[path.name] = ours
        elif theirs is None:
            agreement.only_here.append(path.name)
        elif isinstance(theirs, str):
            agreement.deep += 1
        elif ours.shape != theirs.shape:
            agreement.different[path.name] = f"{ours.shape[:2]} here, {theirs.shape[:2]} there"
        elif (difference := int(np.abs(ours.astype(int) - theirs).max(initial=0))) > SAME:
            agreement.different[path.name] = f"{difference} grey levels"
        else:
            agreement.same += 1
    return agreement


def _ours(path: Path) -> NDArray[np.uint8] | str:
    try:
        return read_pixels(path)
    except UnreadableImageError as error:
        return error.reason


def _theirs(path: Path) -> NDArray[np.uint8] | str | None:
    """Read a file with Pillow: pixels, the name of a mode of more than 8 bit, or nothing where it refuses."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                image.load()
                if image.mode in DEEP_MODES:
                    return image.mode
                upright = ImageOps.exif_transpose(image)
                rgba = (upright.convert("LA") if upright.mode == "La" else upright).convert("RGBA")
    except Exception:  # whatever its decoders stumble over is a refusal
        return None
    canvas = Image.new("RGB", rgba.size, "white")
    canvas.paste(rgba, mask=rgba)
    pixels: NDArray[np.uint8] = np.array(canvas)
    return pixels


def main() -> None:
    """Score the folder, compare each file with Pillow, print both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="any folder of images")
    folder = parser.parse_args().data
    paths = find_images([folder])
    with tempfile.TemporaryDirectory() as name:
        outcome = score(folder, train_model(Path(name)), Path(name))
    failures = outcome.failures(len(paths))
    reasons = ", ".join(f"{count} {reason}" for reason, count in outcome.reasons.most_common())
    print(f"{len(paths)} files: {outcome.readable} readable, {outcome.rows - outcome.readable} unreadable ({reasons})")
    print(f"slowest {outcome.slowest_s:.2f} s ({outcome.slowest}), peak {outcome.peak_mb:.0f} MB")
    print("; ".join(failures) or "no crash, no file lost, nothing printed")
    agreement = compare(paths)
    print(
        f"Pillow: {agreement.same} the same, {agreement.deep} grey of more than 8 bit, "
        f"{agreement.neither} read by nobody, {len(agreement.only_here)} read here only, "
        f"{len(agreement.only_pillow)} by Pillow only, {len(agreement.different)} different"
    )
    for file, what in agreement.different.items():
        print(f"  different: {file}: {what}")
    for file in agreement.only_here:
        print(f"  read here only: {file}")
    for reason, count in Counter(agreement.only_pillow.values()).most_common():
        first = next(file for file, each in agreement.only_pillow.items() if each == reason)
        print(f"  by Pillow only: {count} {reason}: {first}")
    if failures:
        print(outcome.stderr[-3000:])
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
