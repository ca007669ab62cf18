"""The contact sheet of prototypes: what is drawn, where, in which order, and what is refused."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
from command_line import anomaly
from numpy.typing import NDArray
from PIL import Image, ImageOps
from shared_run import NORMALS, SETTINGS, Trained

from anomaly_cli.detector.checkpoint import Model
from anomaly_cli.images.own_output import is_own_output
from anomaly_cli.review.prototype_sheet import COLUMNS, GAP, MARGIN, PAPER, TILE, TITLE, draw_sheet, leaf_order

STEP = TILE + GAP


def tile_of(thumbnail: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(thumbnail)) as picture:
        return np.asarray(ImageOps.pad(picture, (TILE, TILE), color=PAPER))


def test_every_prototype_is_drawn_scale_by_scale_with_similar_ones_side_by_side(here: Path, loaded: Model) -> None:
    result = anomaly("prototypes")

    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == (
        f"prototypes drawn: 50 at stride 4, 50 at stride 8, 50 at stride 16, {NORMALS - 1} at image level, "
        "50 at coarse cells\n"
        "picture: prototypes.png\n"
    )
    sheet = np.asarray(Image.open("prototypes.png"))
    assert sheet.shape[1] == 2 * MARGIN + COLUMNS * STEP - GAP
    y = TITLE + 2 * MARGIN
    for name, thumbnails in loaded.patches.items():
        y += TITLE + 2 * MARGIN
        order = leaf_order(loaded.detector.scale(name).memory.prototypes.numpy())
        for place, number in enumerate(order):
            top, left = y + place // COLUMNS * STEP, MARGIN + place % COLUMNS * STEP
            np.testing.assert_array_equal(sheet[top : top + TILE, left : left + TILE], tile_of(thumbnails[number]))
        y += -(-len(order) // COLUMNS) * STEP - GAP
    assert len(sheet) == y + MARGIN


def test_only_the_first_prototypes_of_each_memory_are_drawn_on_request(here: Path, loaded: Model) -> None:
    result = anomaly("prototypes", "--top", "5", "--out", "few.PNG")

    assert result.stderr == (
        "prototypes drawn: 5 at stride 4, 5 at stride 8, 5 at stride 16, 5 at image level, 5 at coarse cells\n"
        "picture: few.PNG\n"
    )
    sheet = np.asarray(Image.open("few.PNG"))
    top = 2 * (TITLE + 2 * MARGIN)
    drawn = [sheet[top : top + TILE, left : left + TILE].tobytes() for left in range(MARGIN, MARGIN + 5 * STEP, STEP)]
    assert set(drawn) == {tile_of(thumbnail).tobytes() for thumbnail in loaded.patches["4"][:5]}
    assert (sheet[top : top + TILE, MARGIN + 5 * STEP :] == PAPER).all()


def test_the_same_model_gives_the_same_bytes_and_quiet_prints_nothing(here: Path) -> None:
    for name in ("one.png", "other.png"):
        result = anomaly("prototypes", "--out", name, "-q")
        assert (result.exit_code, result.output) == (0, "")

    assert Path("one.png").read_bytes() == Path("other.png").read_bytes()
    assert is_own_output(Path("one.png"))


def test_a_name_that_no_font_has_is_drawn_all_the_same(loaded: Model) -> None:
    plain, odd = (
        draw_sheet(loaded, Path(name), 3) for name in ("m.safetensors", os.fsdecode(b"m\xe9\n\xf0.safetensors"))
    )

    assert plain.size == odd.size
    assert plain.tobytes() != odd.tobytes()


def test_points_on_a_line_are_sorted() -> None:
    rng = np.random.default_rng(0)
    places = rng.permutation(40).astype(np.float32)
    points = np.outer(places, rng.normal(size=6)).astype(np.float32)

    order = leaf_order(points)

    assert places[order].tolist() in (sorted(places), sorted(places, reverse=True))


@pytest.mark.parametrize("count", [1, 2, 3, 30])
def test_every_prototype_has_one_place(count: int) -> None:
    assert sorted(leaf_order(np.random.default_rng(0).normal(size=(count, 4)).astype(np.float32))) == list(range(count))


def test_identical_prototypes_have_a_place_each() -> None:
    assert sorted(leaf_order(np.ones((9, 3), np.float32))) == list(range(9))


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (
            ["--model", "private.safetensors"],
            1,
            "private.safetensors holds no thumbnails: train it again without --no-thumbnails",
        ),
        (["--model", "none"], 1, "no model file at none: make one with `anomaly train NORMAL_DIR`"),
        (["--out", "sheet.jpg"], 2, "the picture is a PNG: --out must end in .png, got sheet.jpg"),
        (["--out", "no/sheet.png"], 1, "cannot write no/sheet.png: no such folder: no"),
    ],
)  # fmt: skip
def test_errors_are_one_line(here: Path, private: Path, arguments: list[str], code: int, message: str) -> None:
    os.link(private, "private.safetensors")

    result = anomaly("prototypes", *arguments)

    assert (result.exit_code, result.stdout, result.stderr) == (code, "", f"error: {message}\n")
    assert not list(Path().glob("*.png"))


@pytest.fixture(scope="module")
def private(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = tmp_path_factory.mktemp("private") / "m.safetensors"
    result = anomaly("train", trained.folder / "normal", *SETTINGS, "--no-thumbnails", "--model", model, "-q")
    assert result.exit_code == 0
    return model


@pytest.mark.parametrize(
    ("top", "rule"), [("0", "greater than or equal to 1 "), ("5001", "less than or equal to 5000 ")]
)
def test_the_number_of_prototypes_has_its_range(here: Path, top: str, rule: str) -> None:
    result = anomaly("prototypes", "--top", top)

    assert result.exit_code == 2
    assert rule in " ".join(result.stderr.replace("│", " ").split())
