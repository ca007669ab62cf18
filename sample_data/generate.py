"""Write the sample pictures of machined washers, their labels and masks; same seed, same pictures.

Run as `python sample_data/generate.py`. It replaces everything it wrote before.
"""

import csv
import io
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import defects
import numpy as np
from camera import Camera, develop
from lighting import Lighting, bench, lay_part
from numpy.typing import NDArray
from parts import OVERSAMPLING, Frame, Part, hex_nut, washer
from PIL import Image
from textures import Array

SEED = 20
FOLDER = Path(__file__).resolve().parent
SQUARE, WIDE, TALL = (256, 256), (240, 320), (320, 240)  # height, width

# The same mix for both classes, so that neither size nor format gives the label away.
FORMATS = [
    *[(SQUARE, ".jpg")] * 13,
    *[(WIDE, ".jpg")] * 3,
    *[(TALL, ".jpg")] * 2,
    (SQUARE, ".png"),
    (SQUARE, ".webp"),
]
ANOMALIES = [
    *["scratch", "crack", "missing_chip"] * 2,
    *["dent", "stain", "foreign_fibre", "swarf"],
    *["wrong_part", "overlapping_parts", "missing_part", "off_centre_hole"],
    *["wrong_part", "rust", "unmachined_surface", "motion_blur", "overexposed", "colour_cast"],
]
SURFACE_DEFECTS: dict[str, Callable[[Frame, Part, np.random.Generator], defects.Where]] = {
    "scratch": defects.scratch,
    "crack": defects.crack,
    "missing_chip": defects.missing_chip,
    "dent": defects.dent,
    "stain": defects.stain,
}
LOOSE_OBJECTS: dict[str, Callable[[Array, Part, Lighting, np.random.Generator], tuple[Array, defects.Where]]] = {
    "foreign_fibre": defects.fibre,
    "swarf": defects.swarf,
}
MATERIALS: dict[str, Callable[[Frame, Part, np.random.Generator], None]] = {
    "rust": defects.rust,
    "unmachined_surface": defects.unmachined,
}


@dataclass(frozen=True)
class Picture:
    """One finished picture; a mask only where the anomaly is local."""

    pixels: NDArray[np.uint8]  # (H, W, 3) RGB
    mask: NDArray[np.uint8] | None  # (H, W), 255 on the defect


def _parts(kind: str, frame: Frame, size: tuple[int, int], rng: np.random.Generator) -> list[Part]:
    """What lies on the bench, lowest first."""
    slack = [10 + 0.25 * (side - min(size)) for side in reversed(size)]
    centre = (rng.uniform(-slack[0], slack[0]), rng.uniform(-slack[1], slack[1]))
    scale = rng.uniform(0.94, 1.06)
    if kind == "missing_part":
        return []
    if kind == "wrong_part":
        return [hex_nut(frame, rng, centre, scale)]
    if kind == "off_centre_hole":
        direction = rng.uniform(0, 2 * np.pi)
        offset = (15 * float(np.cos(direction)), 15 * float(np.sin(direction)))
        return [washer(frame, rng, centre, scale, hole_offset=offset)]
    if kind == "overlapping_parts":
        above = washer(frame, rng, (31.0, 24.0), scale, lift=6.0)
        above.height += 0.05 * frame.x + 0.04 * frame.y  # it leans on the one below
        return [washer(frame, rng, (-30.0, -22.0), scale), above]
    return [washer(frame, rng, centre, scale)]


def _camera(kind: str, rng: np.random.Generator) -> Camera:
    camera = Camera.varied(rng)
    if kind == "motion_blur":
        return replace(camera, smear_px=13.0, smear_angle=rng.uniform(0.2, 0.6))
    if kind == "overexposed":
        return replace(camera, exposure=3.2, glow=0.09)
    if kind == "colour_cast":
        return replace(camera, gains=(1.24, 0.99, 0.58))
    return camera


def photograph(kind: str, size: tuple[int, int], rng: np.random.Generator) -> Picture:
    """Render one picture.

    Args:
        kind: "normal" or one of `ANOMALIES`.
        size: (height, width) in pixels.
        rng: decides everything else.
    """
    frame = Frame.of_size(*size)
    lighting = Lighting.varied(rng)
    camera = _camera(kind, rng)
    parts = _parts(kind, frame, size, rng)
    where: defects.Where | None = None
    if kind in SURFACE_DEFECTS:
        where = SURFACE_DEFECTS[kind](frame, parts[0], rng)
    if kind in MATERIALS:
        MATERIALS[kind](frame, parts[0], rng)
    scene = bench(frame, rng, lighting)
    for part in parts:
        scene = lay_part(scene, frame, part, lighting)
    if kind in LOOSE_OBJECTS:
        scene, where = LOOSE_OBJECTS[kind](scene, parts[0], lighting, rng)
    return Picture(develop(scene, camera, rng), None if where is None else _mask(where))


def _mask(where: defects.Where) -> NDArray[np.uint8]:
    H, W = where.shape
    blocks = where.reshape(H // OVERSAMPLING, OVERSAMPLING, W // OVERSAMPLING, OVERSAMPLING)
    marked = blocks.mean(axis=(1, 3)) >= 0.5  # (H / 2, W / 2)
    return np.where(marked, 255, 0).astype(np.uint8)


def encode(pixels: NDArray[np.uint8], suffix: str) -> bytes:
    """File content of a picture in the format of its suffix."""
    stream = io.BytesIO()
    image = Image.fromarray(pixels)
    if suffix == ".png":
        image.save(stream, "PNG", optimize=True)
    elif suffix == ".webp":
        image.save(stream, "WEBP", quality=88, method=6)
    else:
        image.save(stream, "JPEG", quality=90)
    return stream.getvalue()


def file_stems(rng: np.random.Generator, count: int, first: int) -> list[str]:
    """Names as two counting cameras give them: sorted, with gaps, from number `first` on."""
    numbers = first + np.sort(rng.choice(6 * count, count, replace=False))
    cameras = np.sort(rng.integers(1, 3, count))
    return [f"cam{camera}_{number:04d}" for camera, number in zip(cameras, numbers, strict=True)]


def write_folder(
    folder: Path, kinds: list[str], formats: list[tuple[tuple[int, int], str]], *, seed: int, first: int
) -> list[tuple[str, str, str]]:
    """Write pictures in random order, `kinds[i]` in `formats[i]`; "truncated" and "text" cannot be opened.

    Files are numbered from `first` on.

    Returns:
        Rows for labels.csv: path, label, kind.
    """
    rng = np.random.default_rng(seed)
    rows = []
    order = rng.permutation(len(kinds))
    for index, stem in zip(order, file_stems(rng, len(kinds), first), strict=True):
        kind, (size, suffix) = kinds[index], formats[index]
        path = folder / f"{stem}{suffix}"
        if kind == "text":
            path.write_text("shift 2: lens cleaned at 14:20, belt speed back to 0.4 m/s\n", encoding="utf-8")
            continue
        picture = photograph(kind, size, np.random.default_rng([seed, int(index)]))
        content = encode(picture.pixels, suffix)
        if kind == "truncated":
            path.write_bytes(content[: len(content) // 2])
            continue
        path.write_bytes(content)
        if picture.mask is not None:
            Image.fromarray(picture.mask).save(FOLDER / "masks" / f"{stem}.png", optimize=True)
        label = "normal" if kind == "normal" else "anomalous"
        rows.append((path.relative_to(FOLDER).as_posix(), label, kind))
    return rows


def main() -> None:
    """Replace the sample pictures, masks and labels."""
    for name in ("normal", "incoming", "masks"):
        shutil.rmtree(FOLDER / name, ignore_errors=True)
        (FOLDER / name).mkdir()
    kinds = ["normal"] * 20 + ANOMALIES + ["truncated", "text"]
    # Spread sizes and formats over the kinds instead of giving all of them to the last ones.
    shuffled = [FORMATS[i] for i in np.random.default_rng(SEED).permutation(len(FORMATS))]
    rows = write_folder(FOLDER / "normal", ["normal"] * 40, shuffled * 2, seed=SEED, first=100)
    jpeg = (SQUARE, ".jpg")
    formats = [*shuffled, *shuffled, jpeg, jpeg]
    rows += write_folder(FOLDER / "incoming", kinds, formats, seed=SEED + 1, first=500)
    with (FOLDER / "labels.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["path", "label", "kind"])
        writer.writerows(sorted(rows))


if __name__ == "__main__":
    main()
