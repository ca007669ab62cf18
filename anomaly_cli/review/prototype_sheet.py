"""Contact sheet of the prototypes of every memory as thumbnails, similar ones side by side."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps

from anomaly_cli.detector.checkpoint import Model, load_model
from anomaly_cli.detector.prototype_patches import IMAGE_SIDE
from anomaly_cli.detector.scales import WHOLE_SCALES, scale_title
from anomaly_cli.errors import CheckpointError, ConfigError
from anomaly_cli.files import atomic_output
from anomaly_cli.outputs import Kind, Output, check_outputs, png_mark
from anomaly_cli.review.overlay import printable

COLUMNS = 20  # thumbnails per row
TILE = IMAGE_SIDE  # side of a thumbnail in pixels, enlarged where smaller
GAP = 4  # pixels between thumbnails
MARGIN = 16  # pixels around the sheet and above a title
TITLE = 20  # font size in pixels
PAPER, INK = (250, 250, 250), (30, 30, 30)


def write_prototypes(model_path: Path, out: Path, top: int) -> dict[str, int]:
    """Draw the prototypes of every scale into one picture.

    Args:
        model_path: of a model with thumbnails.
        out: PNG file.
        top: number of prototypes per scale; the first ones of a memory, which the coreset chose first.

    Returns:
        Number of prototypes drawn, by scale.

    Raises:
        ConfigError: `out` does not end in .png.
        CheckpointError: the model cannot be read, or has no thumbnails.
        OutputError: the picture cannot be written.
    """
    if out.suffix.lower() != ".png":
        raise ConfigError(f"the picture is a PNG: --out must end in .png, got {out}")
    check_outputs([Output("--out", out, Kind.PICTURE)], [model_path])
    model = load_model(model_path)
    if not model.patches:
        raise CheckpointError(f"{model_path} holds no thumbnails: train it again without --no-thumbnails")
    picture = draw_sheet(model, model_path, top)
    with atomic_output(out) as file:
        picture.save(file, "PNG", compress_level=6, pnginfo=png_mark())
    return {name: min(top, len(pictures)) for name, pictures in model.patches.items()}


def draw_sheet(model: Model, model_path: Path, top: int) -> Image.Image:
    """Draw one section per scale: its title, then at most `top` thumbnails in the order of `leaf_order`."""
    sections = [(_title(name, model, top), _section(name, model, top)) for name in model.patches]
    step = TITLE + 2 * MARGIN
    height = step * (len(sections) + 1) + sum(section.height for _, section in sections)
    sheet = Image.new("RGB", (2 * MARGIN + _side(COLUMNS), height + MARGIN), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(TITLE)
    normals = model.provenance.images
    draw.text((MARGIN, MARGIN), printable(f"{model_path.name}: learned from {normals} normal images"), INK, font)
    y = step
    for title, section in sections:
        draw.text((MARGIN, y + MARGIN), title, INK, font)
        sheet.paste(section, (MARGIN, y + step))
        y += step + section.height
    return sheet


def leaf_order(prototypes: NDArray[np.float32]) -> list[int]:
    """Order (K, D) prototypes by similarity: the leaves of their average-linkage dendrogram.

    Optimal leaf ordering: the smallest sum of distances between neighbours (Bar-Joseph, Gifford and Jaakkola 2001).
    """
    if len(prototypes) < 3:
        return list(range(len(prototypes)))
    from scipy.cluster.hierarchy import leaves_list, linkage  # imported here: it takes half a second

    order: list[int] = leaves_list(linkage(prototypes, "average", optimal_ordering=True)).tolist()
    return order


def _title(name: str, model: Model, top: int) -> str:
    count = len(model.patches[name])
    shown = f"{count} prototypes" if top >= count else f"{top} of {count} prototypes"
    return f"{scale_title(name)}: {shown}, each a {'whole' if name in WHOLE_SCALES else 'part of an'} image"


def _section(name: str, model: Model, top: int) -> Image.Image:
    prototypes = model.detector.scale(name).memory.prototypes[:top]
    order = leaf_order(prototypes.cpu().numpy())
    rows = -(-len(order) // COLUMNS)
    section = Image.new("RGB", (_side(COLUMNS), _side(rows)), PAPER)
    for place, number in enumerate(order):
        row, column = divmod(place, COLUMNS)
        with Image.open(io.BytesIO(model.patches[name][number])) as thumbnail:
            tile = ImageOps.pad(thumbnail, (TILE, TILE), color=PAPER)
        section.paste(tile, (column * (TILE + GAP), row * (TILE + GAP)))
    return section


def _side(count: int) -> int:
    """Width in pixels of `count` thumbnails side by side."""
    return count * (TILE + GAP) - GAP
