"""Read labelled anomaly sets: in MVTec layout, with a table of labels, a folder a class, or packed into one file."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from anomaly_cli.images.find import IMAGE_SUFFIXES

Item = TypeVar("Item")

NORMAL = "good"  # name of the normal type in MVTec layout


@dataclass(frozen=True)
class TestImage:
    """One test image and what is wrong with it.

    Attributes:
        path: of the image.
        kind: `good`, or the type of the anomaly.
        mask: ground truth, where there is one.
    """

    __test__ = False  # no test case of pytest

    path: Path
    kind: str
    mask: Path | None = None

    @property
    def anomalous(self) -> bool:
        """Whether the image is of another kind than the normal ones."""
        return self.kind != NORMAL


@dataclass(frozen=True)
class AnomalySet:
    """Normal images to learn from and labelled images to test on, both in path order."""

    name: str
    normal: list[Path]
    test: list[TestImage]

    @property
    def has_masks(self) -> bool:
        """Whether any anomaly is localised."""
        return any(image.mask is not None for image in self.test)


def read_mvtec(folder: Path) -> AnomalySet:
    """Read `train/good`, `test/<type>` and, where there is one, `ground_truth/<type>/<name>_mask.*`.

    Raises:
        FileNotFoundError: a folder is missing or holds no image.
    """
    normal = _images(folder / "train" / NORMAL)
    test = []
    for kind in sorted(path for path in (folder / "test").iterdir() if path.is_dir()):
        masks = {path.stem: path for path in (folder / "ground_truth" / kind.name).glob("*_mask.*")}
        test += [TestImage(path, kind.name, masks.get(f"{path.stem}_mask")) for path in _images(kind)]
    return AnomalySet(folder.name, normal, test)


def read_labelled(folder: Path) -> AnomalySet:
    """Read images to learn from in `normal`, test images listed in `labels.csv` (path, label, kind), masks in `masks`.

    What is listed of `normal` is no test image.

    Raises:
        FileNotFoundError: a folder is missing or holds no image.
    """
    masks = {path.stem: path for path in (folder / "masks").glob("*")}
    normal = _images(folder / "normal")
    test = []
    for record in pd.read_csv(folder / "labels.csv", dtype=str).itertuples():
        path = folder / str(record.path)
        anomalous = record.label == "anomalous"
        if path not in normal:
            test.append(TestImage(path, str(record.kind) if anomalous else NORMAL, masks.get(path.stem)))
    return AnomalySet(folder.name, normal, sorted(test, key=lambda image: image.path))


def read_set(folder: Path) -> AnomalySet:
    """Read a folder with `labels.csv`, such as sample_data, or one in MVTec layout."""
    return read_labelled(folder) if (folder / "labels.csv").exists() else read_mvtec(folder)


def read_classes(folder: Path, normal_class: str) -> AnomalySet:
    """Read `train/<class>` and `test/<class>` with one class as normal and all others as anomalous.

    Raises:
        FileNotFoundError: a folder is missing or holds no image.
    """
    test = [
        TestImage(path, NORMAL if kind.name == normal_class else kind.name)
        for kind in sorted((folder / "test").iterdir())
        if kind.is_dir()
        for path in _images(kind)
    ]
    return AnomalySet(f"{folder.name}/{normal_class}", _images(folder / "train" / normal_class), test)


def _images(folder: Path) -> list[Path]:
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise FileNotFoundError(f"no image in {folder}")
    return paths


def subsample(data: AnomalySet, max_normal: int, max_test: int, seed: int) -> AnomalySet:
    """Draw at most so many training images, and at most `max_test` normal and as many anomalous test images.

    The same seed draws the same images, in path order; each of the three draws is independent of the other limits.
    """
    normal = _draw(data.normal, max_normal, seed, 0)
    test_normal = _draw([image for image in data.test if not image.anomalous], max_test, seed, 1)
    test_anomalous = _draw([image for image in data.test if image.anomalous], max_test, seed, 2)
    return replace(data, normal=normal, test=test_normal + test_anomalous)


def _draw(items: list[Item], limit: int, *seed: int) -> list[Item]:
    chosen = np.random.default_rng(seed).permutation(len(items))[:limit]
    return [items[i] for i in sorted(chosen)]


@dataclass(frozen=True)
class PackedImages:
    """Encoded pictures one after another in one file, with their labels.

    Attributes:
        content: (bytes,) uint8, memory-mapped.
        offsets: (n + 1,) of the pictures in it.
        labels: (n,) index into `classes`.
        test: (n,) whether a picture belongs to the test part.
        classes: names.
    """

    content: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    labels: NDArray[np.int64]
    test: NDArray[np.bool_]
    classes: list[str]

    def encoded(self, index: int) -> bytes:
        """Return the file content of one picture."""
        return self.content[self.offsets[index] : self.offsets[index + 1]].tobytes()

    def choose(self, *, test: bool, per_class: int) -> NDArray[np.int64]:
        """Return the indices of the first `per_class` pictures of every class, class by class."""
        part = [np.flatnonzero((self.labels == label) & (self.test == test)) for label in range(len(self.classes))]
        chosen: NDArray[np.int64] = np.concatenate([indices[:per_class] for indices in part])
        return chosen

    def decode(self, indices: NDArray[np.int64], side: int) -> NDArray[np.uint8]:
        """Decode pictures and enlarge them (bicubic) to squares: (len(indices), side, side, 3) RGB."""
        pixels = np.empty((len(indices), side, side, 3), np.uint8)
        for row, index in zip(pixels, indices, strict=True):
            with Image.open(io.BytesIO(self.encoded(index))) as image:
                row[:] = np.asarray(image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC))
        return pixels

    def write_folders(self, folder: Path, train_per_class: int, test_per_class: int) -> None:
        """Write the first pictures as `folder/{train,test}/<class>/NNNNN.jpg`, for `read_classes`."""
        for part, per_class in (("train", train_per_class), ("test", test_per_class)):
            for index in self.choose(test=part == "test", per_class=per_class):
                target = folder / part / self.classes[self.labels[index]] / f"{index:05d}.jpg"
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(self.encoded(index))


def read_packed(prefix: Path) -> PackedImages:
    """Open `prefix.npz` (offsets, labels, test, classes) and `prefix.bin` (the pictures)."""
    index = np.load(prefix.with_name(prefix.name + ".npz"), allow_pickle=False)
    content = np.memmap(prefix.with_name(prefix.name + ".bin"), np.uint8, "r")
    classes = [str(name) for name in index["classes"]]
    return PackedImages(
        content,
        index["offsets"].astype(np.int64),
        index["labels"].astype(np.int64),
        index["test"].astype(bool),
        classes,
    )
