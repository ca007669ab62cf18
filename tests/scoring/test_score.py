"""Scoring: the same input gives the same bytes, each file is judged for itself, pictures agree with the table."""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from command_line import anomaly, rows_of
from PIL import Image
from safetensors.torch import load_file
from shared_run import Trained

from anomaly_cli.detector.anomaly_detector import AnomalyDetector
from anomaly_cli.detector.calibration import ScoreScale
from anomaly_cli.detector.checkpoint import Model
from anomaly_cli.detector.devices import choose_devices
from anomaly_cli.errors import InputError, UnreadableImageError
from anomaly_cli.images import find
from anomaly_cli.images.decode import LoadedImage, load_image
from anomaly_cli.images.find import find_images
from anomaly_cli.review import heatmaps
from anomaly_cli.review.mirror import Mirror
from anomaly_cli.scoring import measure
from anomaly_cli.scoring import score as scoring
from anomaly_cli.scoring.measure import Measured, Scorer
from anomaly_cli.scoring.regions import peak_region
from anomaly_cli.scoring.rows import make_row
from anomaly_cli.training import train as training

OF_THE_RUN = ("rank", "q_value", "flagged")  # columns that depend on what else is scored


def table(*inputs: str) -> bytes:
    result = anomaly("score", *inputs, "--out", "-", "-q")
    assert result.exit_code == 0, result.stderr
    return result.stdout_bytes


def silent(phase: str, done: int, total: int, /) -> None:
    """Report progress to nobody."""


def pictures(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# The same again


def test_the_table_has_the_same_bytes_whatever_the_number_of_workers_and_the_order_of_files(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [os.fspath(path) for path in sorted(Path("incoming").rglob("*.*g"))]
    tables = []
    shuffled = random.Random(0).sample(files, len(files))
    for workers, inputs in ((1, ["incoming"]), (3, files), (2, files[::-1]), (4, shuffled)):
        monkeypatch.setattr(measure, "worker_count", lambda workers=workers: workers)
        tables.append(table(*inputs))

    assert tables[0].count(b"\n") == 10
    assert tables[1:] == tables[:1] * 3


def test_the_score_of_a_file_does_not_depend_on_what_else_is_scored(here: Path) -> None:
    together = {row["path"]: row for row in rows_of(table("incoming", "normal"))}

    for path in ("incoming/bad0.jpg", "incoming/deep/good one.png"):
        alone = rows_of(table(path))[0]
        assert {k: v for k, v in alone.items() if k not in OF_THE_RUN} == {
            k: v for k, v in together[path].items() if k not in OF_THE_RUN
        }


def test_training_twice_gives_the_same_tensors_and_calibration(
    trained: Trained, trained_again: training.TrainReport
) -> None:
    first, second = load_file(trained.model), load_file(trained_again.model_path)

    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    headers = [scoring.info(path) for path in (trained.model, trained_again.model_path)]
    for header in headers:
        del header["provenance"]["created"]
    assert headers[0] == headers[1]


# Files that change meanwhile


def test_files_that_vanish_or_change_after_listing_are_unreadable_rows(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree("incoming", "changing")

    def find_then_change(inputs: Sequence[Path], *options: Any) -> list[Path]:
        found = find_images(inputs, *options)
        Path("changing/good0.png").unlink()
        Path("changing/good1.png").write_text("no picture at all, only words")
        Path("changing/bad0.jpg").write_bytes(Path("changing/bad0.jpg").read_bytes()[:800])
        return found

    monkeypatch.setattr("anomaly_cli.images.find.find_images", find_then_change)
    rows = {Path(row["path"]).name: row for row in rows_of(table("changing"))}

    assert len(rows) == 9
    assert (rows["good0.png"]["status"], rows["good0.png"]["reason"]) == ("unreadable", "no such file")
    assert (rows["good1.png"]["status"], rows["good1.png"]["reason"]) == ("unreadable", "not an image")
    assert rows["bad0.jpg"]["reason"].startswith("truncated")
    assert rows["bad0.jpg"]["score"] == rows["bad0.jpg"]["rank"] == ""
    assert sum(row["status"] == "ok" for row in rows.values()) == 6


def test_a_file_that_vanishes_after_scoring_is_left_out_of_the_heatmaps_by_name(here: Path) -> None:
    shutil.copytree("incoming", "changing")
    assert anomaly("score", "changing", "-q").exit_code == 0
    Path("changing/bad0.jpg").unlink()

    result = anomaly("heatmap", "--scores", "scores.csv", "--top", "3")

    assert result.exit_code == 0
    assert result.stderr.splitlines() == [
        "warning: 1 file cannot be read and is left out:",
        "  changing/bad0.jpg: no such file",
        "2 overlays in heatmaps",
    ]


def test_links_in_a_circle_list_every_file_once(here: Path) -> None:
    Path("tree", "branch").mkdir(parents=True)
    shutil.copy("incoming/good0.png", "tree/a.png")
    shutil.copy("incoming/bad0.jpg", "tree/branch/b.jpg")
    Path("tree/branch/up").symlink_to("..")
    Path("tree/self").symlink_to("self")
    Path("tree/broken.png").symlink_to("gone.png")

    rows = rows_of(table("tree"))

    assert [(row["path"], row["status"]) for row in rows] == [
        ("tree/branch/b.jpg", "ok"),
        ("tree/a.png", "ok"),
        ("tree/broken.png", "unreadable"),
    ]


# Batches on accelerators


def test_batches_of_mixed_sizes_give_what_one_image_at_a_time_gives(
    loaded: Model, trained: Trained, tmp_path: Path
) -> None:
    paths = sorted((trained.folder / "incoming").glob("*.*g"))
    for i, size in enumerate([(160, 40), (64, 64), (40, 160), (161, 41)]):
        Image.effect_noise(size, 60).save(tmp_path / f"{i}.png")
        paths.insert(2 * i, tmp_path / f"{i}.png")
    paths.insert(5, tmp_path / "gone.png")
    cpu, elsewhere = torch.device("cpu"), cast(torch.device, SimpleNamespace(type="accelerator"))

    def measured(device: torch.device) -> list[Measured | UnreadableImageError]:
        return list(Scorer(loaded, [device]).measure(paths))

    shapes = {load_image(path, 64).pixels.shape for path in paths if path.exists()}
    assert len(shapes) == 3
    for one, batched in zip(measured(cpu), measured(elsewhere), strict=True):
        if isinstance(one, UnreadableImageError) or isinstance(batched, UnreadableImageError):
            assert str(one) == str(batched) == "no such file"
            continue
        assert (one.height, one.width) == (batched.height, batched.width)
        np.testing.assert_allclose(batched.anomaly_map, one.anomaly_map, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(batched.deviations, one.deviations, rtol=1e-4, atol=1e-4)


def test_many_images_are_batched_without_loss(loaded: Model, monkeypatch: pytest.MonkeyPatch, trained: Trained) -> None:
    monkeypatch.setattr(measure, "GPU_BATCH", 2)
    batches: list[int] = []
    measure_batch = measure.measure_batch

    def counted(detector: Any, calibration: Any, unit: Any, images: list[LoadedImage]) -> list[Measured]:
        batches.append(len(images))
        return measure_batch(detector, calibration, unit, images)

    monkeypatch.setattr(measure, "measure_batch", counted)
    paths = sorted((trained.folder / "incoming").glob("good*.png"))
    elsewhere = cast(torch.device, SimpleNamespace(type="accelerator"))

    results = list(Scorer(loaded, [elsewhere]).measure(paths))

    assert len(results) == 5
    assert batches == [2, 2, 1]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_images_distributed_over_several_devices_come_back_in_order_and_the_same(
    loaded: Model, monkeypatch: pytest.MonkeyPatch, trained: Trained, count: int
) -> None:
    monkeypatch.setattr(measure, "GPU_BATCH", 2)
    used = set()
    measure_batch = measure.measure_batch

    def noted(
        detector: AnomalyDetector, calibration: Any, unit: ScoreScale, images: list[LoadedImage]
    ) -> list[Measured]:
        used.add(id(detector))
        time.sleep(0.01)  # so that no detector is done with all before the next has begun
        return measure_batch(detector, calibration, unit, images)

    monkeypatch.setattr(measure, "measure_batch", noted)
    paths = [*sorted((trained.folder / "incoming").glob("*.*g")), trained.folder / "gone.png"]
    accelerator = cast(torch.device, SimpleNamespace(type="accelerator"))
    devices = [accelerator] if count == 1 else [torch.device("cpu")] * count
    calibration = loaded.calibration

    alone = list(Scorer(loaded, [accelerator]).measure(paths))
    used.clear()
    dealt = list(Scorer(loaded, devices).measure(paths))

    assert len(used) == count
    assert [make_row(path, each, calibration) for path, each in zip(paths, dealt, strict=True)] == [
        make_row(path, each, calibration) for path, each in zip(paths, alone, strict=True)
    ]


def test_a_table_from_two_devices_ranks_as_that_of_one(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = rows_of(table("incoming"))
    monkeypatch.setattr(scoring, "choose_devices", lambda name: [torch.device("cpu")] * 2)

    two = rows_of(table("incoming"))

    assert [row["path"] for row in two] == [row["path"] for row in one]
    np.testing.assert_allclose([float(row["score"]) for row in two], [float(row["score"]) for row in one], atol=1e-4)


def test_all_gpus_are_used_unless_one_device_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)

    assert choose_devices("auto") == [torch.device("cuda", index) for index in range(3)]
    assert choose_devices("cpu") == [torch.device("cpu")]


# Heat maps


def test_names_of_overlays_mirror_the_tree_of_the_inputs(here: Path) -> None:
    result = anomaly("heatmap", "incoming", "--out", "drawn")

    expected = {f"{path}.png" for path in Path("incoming").rglob("*.*g")}
    assert set(pictures(Path("drawn"))) == expected
    assert result.stdout == ""
    assert result.stderr == "9 overlays in drawn\n"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("a/b.png", "out/a/b.png"),
        ("../../a/b.png", "out/__/__/a/b.png"),
        ("a/../b.png", "out/a/__/b.png"),
        ("..hidden/b.png", "out/..hidden/b.png"),
    ],
)
def test_no_overlay_is_written_outside_of_its_folder(path: str, expected: str) -> None:
    assert Mirror().target(Path(path), Path("out")) == Path(expected)


def test_the_top_n_are_the_first_n_of_the_table(here: Path) -> None:
    first = [row["path"] for row in rows_of(table("incoming"))][:2]

    assert anomaly("heatmap", "incoming", "--top", "2", "-q").exit_code == 0

    assert set(pictures(Path("heatmaps"))) == {f"{path}.png" for path in first}


def test_drawing_from_the_table_gives_the_same_pictures_as_scoring_again(here: Path) -> None:
    assert anomaly("score", "incoming", "-q").exit_code == 0
    again = anomaly("heatmap", "incoming", "--out", "again", "-q")

    listed = anomaly("heatmap", "--scores", "scores.csv", "--out", "listed", "-q")
    chosen = anomaly("heatmap", "incoming/deep", "--scores", "scores.csv", "--out", "chosen", "-q")

    assert again.exit_code == listed.exit_code == chosen.exit_code == 0
    assert pictures(Path("listed")) == pictures(Path("again"))
    name = "incoming/deep/good one.png.png"
    assert pictures(Path("chosen")) == {name: pictures(Path("again"))[name]}


def test_raw_maps_agree_with_each_other_and_with_the_regions_of_the_table(here: Path) -> None:
    for raw in ("png16", "npy"):
        assert anomaly("heatmap", "incoming", "--raw", raw, "--out", raw, "-q").exit_code == 0

    for row in rows_of(table("incoming")):
        exact = np.load(Path("npy", row["path"] + ".map.npy"))
        coded = np.asarray(Image.open(Path("png16", row["path"] + ".map.png")))
        region = peak_region(exact, 1.0, int(row["height"]), int(row["width"]))
        assert (str(exact.dtype), str(coded.dtype), exact.shape) == ("float32", "uint16", coded.shape)
        np.testing.assert_allclose(coded / 1000, exact, rtol=0, atol=0.000501)
        assert [int(row[f"region_{side}"]) for side in "xywh"] == [region.x, region.y, region.width, region.height]
        # The unit is that of the score: the limit of normal is 1.
        assert (exact.max() > 1) == (float(row["score"]) > 1)


# What is refused


def test_if_no_input_holds_an_image_all_inputs_are_named(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()

    with pytest.raises(InputError) as caught:
        find.collect([tmp_path / "a", tmp_path / "b"])

    assert str(caught.value) == f"no image found in {tmp_path}/a, {tmp_path}/b"


def test_progress_counts_every_file_once_and_to_the_end(here: Path) -> None:
    calls: list[tuple[str, int, int]] = []

    heatmaps.heatmap(
        [Path("incoming")],
        Path("anomaly.safetensors"),
        heatmaps.Drawn(Path("out")),
        progress=lambda *call: calls.append(call),
    )

    assert [call for call in calls if call[0] == "scoring"] == [("scoring", i, 9) for i in range(1, 10)]
    assert [call for call in calls if call[0] == "drawing"] == [("drawing", i, 9) for i in range(1, 10)]
