"""The readers of the benchmark's sets, against folders made here."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from packing import pack
from PIL import Image

from benchmarks.accuracy.datasets import (
    AnomalySet,
    TestImage,
    read_classes,
    read_mvtec,
    read_packed,
    read_set,
    subsample,
)
from benchmarks.accuracy.further_sets import lay_out


def write_image(path: Path, side: int = 8) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (side, side)).save(path)
    return path


def mvtec_folder(folder: Path) -> Path:
    for i in range(6):
        write_image(folder / "train" / "good" / f"{i}.png")
        write_image(folder / "test" / "good" / f"{i}.png")
        write_image(folder / "test" / "scratch" / f"{i}.jpg")
        write_image(folder / "test" / "dent" / f"{i}.jpg")
        write_image(folder / "ground_truth" / "scratch" / f"{i}_mask.png")
    (folder / "test" / "dent" / "notes.txt").write_text("no image")
    return folder


def test_mvtec_layout_is_read_with_types_and_masks(tmp_path: Path) -> None:
    folder = mvtec_folder(tmp_path / "metal")

    data = read_mvtec(folder)

    assert data.name == "metal"
    assert data.normal == [folder / "train" / "good" / f"{i}.png" for i in range(6)]
    assert [image.kind for image in data.test] == ["dent"] * 6 + ["good"] * 6 + ["scratch"] * 6
    assert [image.anomalous for image in data.test] == [True] * 6 + [False] * 6 + [True] * 6
    assert data.has_masks
    assert {image.mask for image in data.test[:12]} == {None}
    assert data.test[13].mask == folder / "ground_truth" / "scratch" / "1_mask.png"


def test_a_table_of_labels_gives_the_test_images_and_images_to_learn_from_are_none_of_them(tmp_path: Path) -> None:
    for name in ("normal/1.png", "normal/2.png", "new/3.png", "new/4.png", "masks/4.png"):
        write_image(tmp_path / name)
    table = ["path,label,kind", "normal/1.png,normal,normal", "new/4.png,anomalous,dent", "new/3.png,normal,normal"]
    (tmp_path / "labels.csv").write_text("\n".join(table))

    data = read_set(tmp_path)

    assert data.normal == [tmp_path / "normal/1.png", tmp_path / "normal/2.png"]
    assert data.test == [
        TestImage(tmp_path / "new/3.png", "good"),
        TestImage(tmp_path / "new/4.png", "dent", tmp_path / "masks/4.png"),
    ]


def test_class_folders_are_read_as_one_class_against_the_rest(tmp_path: Path) -> None:
    for part, name in itertools.product(("train", "test"), ("cat", "dog", "owl")):
        write_image(tmp_path / "pets" / part / name / "1.png")

    data = read_classes(tmp_path / "pets", "dog")

    assert data.name == "pets/dog"
    assert [path.parent.name for path in data.normal] == ["dog"]
    assert [(image.path.parent.name, image.anomalous) for image in data.test] == [
        ("cat", True),
        ("dog", False),
        ("owl", True),
    ]


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "train" / "good").mkdir(parents=True)

    with pytest.raises(FileNotFoundError, match=f"no image in {tmp_path / 'train' / 'good'}"):
        read_mvtec(tmp_path)


def made_up_set() -> AnomalySet:
    test = [TestImage(Path(f"{i:03}"), "good" if i % 3 else "dent") for i in range(90)]
    return AnomalySet("made up", [Path(f"n{i:03}") for i in range(50)], test)


def test_a_seed_draws_the_same_images_and_another_seed_others() -> None:
    first, again, other = (subsample(made_up_set(), 10, 7, seed) for seed in (1, 1, 2))

    assert first == again
    assert first.normal != other.normal
    assert len(first.normal) == len(set(first.normal)) == 10
    assert sum(image.anomalous for image in first.test) == sum(not image.anomalous for image in first.test) == 7
    assert first.normal == sorted(first.normal)


def test_limits_above_the_size_keep_everything() -> None:
    data = subsample(made_up_set(), 1000, 1000, 0)

    assert data.normal == made_up_set().normal
    assert {image.path for image in data.test} == {image.path for image in made_up_set().test}


def packed_pictures(folder: Path) -> Path:
    pictures = [Image.new("RGB", (32, 32), (20 * shade,) * 3) for shade in range(12)]
    return pack(folder / "tiny", pictures, ["ant", "bee", "cow"])


def test_packed_pictures_are_decoded_and_enlarged(tmp_path: Path) -> None:
    packed = read_packed(packed_pictures(tmp_path))

    chosen = packed.choose(test=True, per_class=1)
    pixels = packed.decode(chosen, 64)

    assert chosen.tolist() == [6, 7, 8]
    assert packed.labels[chosen].tolist() == [0, 1, 2]
    assert pixels.shape == (3, 64, 64, 3)
    assert pixels.mean((1, 2, 3)) == pytest.approx([120, 140, 160], abs=2)


def test_packed_pictures_become_class_folders(tmp_path: Path) -> None:
    read_packed(packed_pictures(tmp_path)).write_folders(tmp_path / "tree", 2, 1)

    data = read_classes(tmp_path / "tree", "bee")

    assert [path.name for path in data.normal] == ["00001.jpg", "00004.jpg"]
    assert [image.kind for image in data.test] == ["ant", "good", "cow"]


def empty_files(folder: Path, names: list[str]) -> None:
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).touch()


def test_further_sets_are_dealt_the_same_way_and_link_every_file_once(tmp_path: Path) -> None:
    clones = tmp_path / "clones"
    empty_files(clones / "brain-tumor-model" / "no", [f"{i} no.jpg" for i in range(70)])
    empty_files(clones / "brain-tumor-model" / "yes", ["Y1.jpg", "Y2.jpg"])

    made, again = (lay_out(clones, tmp_path / out) for out in ("first", "again"))

    assert made == again == ["brain"]
    data, same = (read_mvtec(tmp_path / out / "brain") for out in ("first", "again"))
    assert [path.name for path in data.normal] == [path.name for path in same.normal]
    assert (len(data.normal), len(data.test)) == (60, 12)
    every = [*data.normal, *(image.path for image in data.test)]
    assert len({path.resolve() for path in every}) == 72
    assert {image.path.name for image in data.test if image.anomalous} == {"Y1.jpg", "Y2.jpg"}


def test_a_place_on_the_boards_is_learned_or_tested_never_both(tmp_path: Path) -> None:
    folder = tmp_path / "clones" / "DeepPCB" / "PCBData" / "group20085" / "20085"
    empty_files(folder, [f"{i}_{kind}.jpg" for i in range(200) for kind in ("temp", "test")])

    lay_out(tmp_path / "clones", tmp_path / "out")

    data = read_mvtec(tmp_path / "out" / "pcb")
    learned = {path.name.partition("_")[0] for path in data.normal}
    tested = [image.path.name.partition("_")[0] for image in data.test]
    assert (len(learned), len(tested)) == (160, 80)
    assert not learned & {*tested}
    assert sum(image.anomalous for image in data.test) == 40
