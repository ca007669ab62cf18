"""Read labelled pictures, packed or in folders, into one array on disk that training can sample from."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

PICTURE_SIZE = 96  # pixels; every picture is cut to its centre square and resized to this side
SHARP_SIZE = 160  # pixels; the same for the pictures that keep fine detail
WORDNET_ID = re.compile(r"n\d{8}")
SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}


@dataclass(frozen=True)
class Source:
    """One undecoded picture and the class it shows in its own set."""

    group: str  # pictures of one group share a classification head
    label: str
    content: bytes | Path


@dataclass(frozen=True)
class Pictures:
    """Decoded pictures with a group (classification head) and a class within the group each.

    Attributes:
        pixels: (N, side, side, 3) uint8, memory-mapped.
        groups: (N,) index into `classes`.
        labels: (N,) index into `classes[group]`.
        classes: class names of every group.
    """

    pixels: NDArray[np.uint8]
    groups: NDArray[np.int64]
    labels: NDArray[np.int64]
    classes: list[list[str]]


def _packed(path: Path) -> Iterator[Source]:
    index = np.load(path, allow_pickle=False)
    content = path.with_suffix(".bin").read_bytes()
    names = [str(name) for name in index["classes"]]
    offsets = index["offsets"].tolist()
    for start, end, label in zip(offsets[:-1], offsets[1:], index["labels"].tolist(), strict=True):
        yield Source(path.stem, names[label], content[start:end])


def _folders(root: Path) -> Iterator[Source]:
    for path in sorted(root.rglob("*")):
        if path.suffix.lower() not in SUFFIXES:
            continue
        parent = path.parent if path.parent.name != "images" else path.parent.parent
        yield Source(root.name, parent.name, path)


def find_sources(data: list[Path]) -> list[Source]:
    """List all pictures below the given folders: packed sets (`*.npz` + `*.bin`) and folders a class.

    Classes named by a WordNet id mean the same in every set, so they share the group `wordnet`.
    """
    sources: list[Source] = []
    for folder in data:
        packed = sorted(folder.glob("*.npz"))
        if packed:
            sources += [source for path in packed for source in _packed(path)]
        else:
            sources += [s for sub in sorted(folder.iterdir()) if sub.is_dir() for s in _folders(sub)]
    return [Source("wordnet", s.label, s.content) if WORDNET_ID.fullmatch(s.label) else s for s in sources]


def _decode(source: Source, side: int) -> NDArray[np.uint8] | None:
    try:
        stream = io.BytesIO(source.content) if isinstance(source.content, bytes) else source.content
        with Image.open(stream) as image:
            image.draft("RGB", (side, side))
            square = ImageOps.fit(image.convert("RGB"), (side, side), Image.Resampling.BICUBIC)
            return np.asarray(square)
    except OSError:
        return None  # left out of the array and counted by the caller


def load_pictures(data: list[Path], cache: Path, side: int = PICTURE_SIZE) -> Pictures:
    """Decode everything below `data` to squares once, into `cache`; later calls map the array that is there."""
    cache.mkdir(parents=True, exist_ok=True)
    index = cache / "index.json"
    if not index.exists():
        _build_cache(find_sources(data), cache, side)
    meta = json.loads(index.read_text())
    shape = (meta["count"], side, side, 3)
    pixels = np.memmap(cache / "pixels.u8", np.uint8, "r", shape=shape)
    labels = np.load(cache / "labels.npy")
    return Pictures(pixels, labels[:, 0], labels[:, 1], meta["classes"])


def _build_cache(sources: list[Source], cache: Path, side: int) -> None:
    names: dict[str, set[str]] = {}
    for source in sources:
        names.setdefault(source.group, set()).add(source.label)
    groups = sorted(names)
    classes = [sorted(names[group]) for group in groups]
    lookup = {(g, c): (i, j) for i, g in enumerate(groups) for j, c in enumerate(classes[i])}
    labels = []
    with (cache / "pixels.u8").open("wb") as out, ThreadPoolExecutor() as pool:
        for source, pixels in zip(sources, pool.map(lambda s: _decode(s, side), sources), strict=True):
            if pixels is not None:
                out.write(pixels.tobytes())
                labels.append(lookup[source.group, source.label])
    np.save(cache / "labels.npy", np.array(labels))
    skipped = len(sources) - len(labels)
    meta = {"count": len(labels), "unreadable": skipped, "groups": groups, "classes": classes}
    (cache / "index.json").write_text(json.dumps(meta))
