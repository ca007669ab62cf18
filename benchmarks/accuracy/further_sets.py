"""Lay out ten further sets from clones of their repositories: `python -m benchmarks.accuracy.further_sets CLONES OUT`.

`CLONES/<name>` is a clone of the repository of that name in `SETS`, at the commit that the name ends with where there
is one. `OUT/<set>` becomes a set in MVTec layout, of links to the files of the clones; a set whose clone is missing is
left out. Where nobody divided the normal images they are dealt by chance, the same way in every run. The photographs
belong to whoever made the repositories; none is part of this project.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.accuracy.datasets import NORMAL

PCB_TRAINING = 160  # places on the boards of which the normal picture is learned; other places are tested
FUNDUS_IMAGES = 250, 250, 100  # normal ones to learn from and to test on, and of each disease: the set is large
Kinds = dict[str, list[Path]]  # files by folder: `train/good`, `test/<kind>`


@dataclass(frozen=True)
class FurtherSet:
    """Where a set comes from.

    Attributes:
        clone: `owner/name` of the GitHub repository, with `-<commit>` where it is not the newest.
        read: of the folder of the clone.
    """

    clone: str
    read: Callable[[Path], Kinds]


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file())


def _dealt(normal: str, anomalous: dict[str, str], training: int) -> Callable[[Path], Kinds]:
    """Deal the images of the normal folder; all of each anomalous one are for testing."""

    def read(clone: Path) -> Kinds:
        files = _files(clone / normal)
        random.Random(0).shuffle(files)
        tests = {f"test/{kind}": _files(clone / folder) for kind, folder in anomalous.items()}
        return {f"train/{NORMAL}": files[:training], f"test/{NORMAL}": files[training:], **tests}

    return read


def _as_divided(folders: dict[str, str]) -> Callable[[Path], Kinds]:
    """Take folders as the repository divides them."""
    return lambda clone: {kind: _files(clone / folder) for kind, folder in folders.items()}


def _boards(clone: Path) -> Kinds:
    """Pairs of a template and a defective picture of the same place; a place is learned or tested, never both."""
    folder = clone / "PCBData" / "group20085" / "20085"
    places = [path.name.removesuffix("_temp.jpg") for path in sorted(folder.glob("*_temp.jpg"))]
    random.Random(1).shuffle(places)
    learned, tested = places[:PCB_TRAINING], places[PCB_TRAINING:]
    return {
        f"train/{NORMAL}": [folder / f"{place}_temp.jpg" for place in learned],
        f"test/{NORMAL}": [folder / f"{place}_temp.jpg" for place in tested],
        "test/bad": [folder / f"{place}_test.jpg" for place in tested],
    }


def _fundus(clone: Path) -> Kinds:
    training, testing, of_each = FUNDUS_IMAGES
    draw = random.Random(0)
    kinds: Kinds = {}
    for kind in ("normal", "cataract", "diabetic_retinopathy", "glaucoma"):
        files = _files(clone / kind)
        draw.shuffle(files)
        if kind == "normal":
            kinds |= {f"train/{NORMAL}": files[:training], f"test/{NORMAL}": files[training : training + testing]}
        else:
            kinds[f"test/{kind}"] = files[:of_each]
    return kinds


def _mvtec(folder: str) -> Callable[[Path], Kinds]:
    """Take a set that is in MVTec layout already, masks included."""

    def read(clone: Path) -> Kinds:
        root = clone / folder
        return {str(part.relative_to(root)): _files(part) for part in sorted(root.glob("*/*")) if part.is_dir()}

    return read


SETS: dict[str, FurtherSet] = {
    "crack": FurtherSet("Smalleaves123/CrackCV", _dealt("dataset/Negative", {"bad": "dataset/Positive"}, training=200)),
    "brain": FurtherSet("Yehiahesham86/brain-tumor-model", _dealt("no", {"bad": "yes"}, training=60)),
    "pcb": FurtherSet("tangsanli5201/DeepPCB", _boards),
    "cataract": FurtherSet(
        "cocobuy/KlasifikasiKatarakCNN",
        _dealt("dataset/normal", {"immature": "dataset/imatur", "mature": "dataset/matur"}, training=35),
    ),
    "cane": FurtherSet(
        "RoshitaB/Sugarcane-Leaf-Disease-Detection",
        _dealt("dataset/Healthy", {"redrot": "dataset/RedRot", "redrust": "dataset/RedRust"}, training=45),
    ),
    "covid": FurtherSet(
        "MathBatistela/COVID19-AI-classifier", _dealt("data/normal", {"covid": "data/covid"}, training=60)
    ),
    "xray": FurtherSet(
        "szallik/Neural_networks_binary_classification",
        _as_divided(
            {f"train/{NORMAL}": "data/train/NORMAL", f"test/{NORMAL}": "data/test/NORMAL"}
            | {"test/bad": "data/test/PNEUMONIA"}
        ),
    ),
    "toothbrush": FurtherSet("idinyte/SimpleNet_SDU", _mvtec("dataset/toothbrush")),
    "glassfiber": FurtherSet("idinyte/SimpleNet_SDU-9876e68", _mvtec("dataset/glassfiber")),
    "fundus": FurtherSet("akhii-leesh/Fundus-image-dataset", _fundus),
}


def lay_out(clones: Path, out: Path) -> list[str]:
    """Link every set whose clone is there; which ones."""
    made = []
    for name, each in SETS.items():
        clone = clones / each.clone.rpartition("/")[2]
        if not clone.is_dir():
            continue
        for kind, files in each.read(clone.resolve()).items():
            folder = out / name / kind
            folder.mkdir(parents=True, exist_ok=True)
            for file in files:
                (folder / file.name.replace(" ", "_")).symlink_to(file)
        made.append(name)
    return made


def main() -> None:
    """Lay out the sets and name them."""
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    options.add_argument("clones", type=Path)
    options.add_argument("out", type=Path)
    args = options.parse_args()
    for name in lay_out(args.clones, args.out):
        print(args.out / name)


if __name__ == "__main__":
    main()
