"""How the tables draw their images, what the ablation replaces, and that a table runs as a command."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from benchmark_sets import write_texture_set
from interrupted_table import measured_once
from PIL import Image

from anomaly_cli.config import DetectorConfig, Effort
from anomaly_cli.detector.memory import PrototypeMemory
from benchmarks import jobs
from benchmarks.accuracy import ablation, contamination, few_normals, labels, peers, unbalanced
from benchmarks.accuracy.datasets import AnomalySet, TestImage, read_mvtec
from benchmarks.jobs import Training


def made_up_set() -> AnomalySet:
    kinds = ["good", "dent", "scratch", "rust"]
    test = [TestImage(Path(f"{i:03}"), kinds[i % 4]) for i in range(120)]
    return AnomalySet("made up", [Path(f"n{i:03}") for i in range(90)], test)


def test_a_table_runs_as_a_command_and_keeps_what_was_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    texture, out = write_texture_set(tmp_path / "texture"), tmp_path / "new" / "peers.csv"
    options = ["--data", str(texture), "--seeds", "1", "--image-size", "64", "--methods", "lof", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["benchmarks/accuracy/peers.py", *options])

    peers.main()

    rows = pd.read_csv(out)
    assert rows[["set", "method", "tested"]].to_numpy().tolist() == [["texture", "lof", 12]]
    facts = json.loads(out.with_suffix(".json").read_text())
    assert facts["command"] == (
        "python -m benchmarks.accuracy.peers --data BENCH/texture --seeds 1 --image-size 64 --methods lof "
        "--out peers.csv"
    )
    assert facts["cores"] >= 1
    assert "set texture, seed 0, method lof, normals 9" in capsys.readouterr().out


def test_a_table_that_was_ended_continues_with_the_same_command_and_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [tmp_path / name for name in "abc"]
    out, noted, last = (tmp_path / name for name in ("out.csv", "measured", "last"))
    last.write_text("a")
    monkeypatch.setattr(sys, "argv", ["benchmarks/accuracy/peers.py", "--seeds", "1"])

    for _ in range(2):
        with pytest.raises(RuntimeError, match="ended"):
            jobs.measure_all(measured_once, folders, out)
    assert noted.read_text() == "a"
    assert pd.read_csv(out)["set"].tolist() == ["a", "a"]
    last.write_text("b")
    monkeypatch.setattr(jobs, "code_digest", lambda: "other")
    with pytest.raises(RuntimeError, match="ended"):
        jobs.measure_all(measured_once, folders, out)
    assert noted.read_text() == "aab"  # with other code, from the start
    last.write_text("c")
    capsys.readouterr()
    table = jobs.measure_all(measured_once, folders, out)

    assert noted.read_text() == "aabc"
    assert table["set"].tolist() == [*"aabbcc"]
    assert table["image_auroc"].tolist() == [1 / 3, 0.25] * 3
    assert pd.read_csv(out)["set"].tolist() == [*"aabbcc"]
    assert "continued: 2 measurements were done already\n" in capsys.readouterr().out
    assert not list(tmp_path.glob("*unfinished*"))


def test_a_command_is_quoted_without_the_folders_of_this_machine() -> None:
    words = [
        "/a/accuracy/style.py",
        "--data",
        "/x/screw",
        "../y/tile",
        "sample_data",
        "--cifar",
        "/x/cifar10",
        "--out",
        "r/s.csv",
    ]

    assert jobs.command_line(words) == (
        "python -m benchmarks.accuracy.style --data BENCH/screw BENCH/tile sample_data --cifar BENCH/cifar10 "
        "--out s.csv"
    )


def test_each_class_of_a_folder_is_once_the_normal_one(tmp_path: Path) -> None:
    for part in ("train", "test"):
        for kind in ("church", "truck"):
            (tmp_path / "photos" / part / kind).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(tmp_path / "photos" / part / kind / "0.png")

    options = jobs.set_options(None).parse_args(["--classes", str(tmp_path / "photos"), "--out", "out.csv"])
    found = jobs.sets_of(options, tmp_path)
    options.only = ["truck"]
    (alone,) = jobs.sets_of(options, tmp_path)

    assert [data.name for data in found] == ["photos/church", "photos/truck"]
    assert [image.kind for image in found[1].test] == ["church", "good"]
    assert alone == found[1]


def options_of(**given: object) -> argparse.Namespace:
    defaults = {"max_train": 1000, "max_test": 1000, "seeds": 1, "image_size": 64}
    return argparse.Namespace(**defaults | given)


def test_fewer_normal_images_are_some_of_the_more_and_the_test_images_stay() -> None:
    found = list(few_normals.jobs_of(options_of(counts=[8, 16, 100, 0], methods=["ours"]), [made_up_set()]))

    assert [(job.label, len(job.data.normal)) for job in found] == [("8", 8), ("16", 16), ("all", 90)]
    assert set(found[0].data.normal) < set(found[1].data.normal)
    assert found[0].data.test == found[2].data.test


def test_labels_of_all_types_leave_the_test_images_and_more_labels_include_the_fewer() -> None:
    same = [job for job in unbalanced_jobs() if job.setting.name == unbalanced.SAME]

    labelled = [set(job.labelled) for job in same]
    assert [len(each) for each in labelled] == [0, 5, 22]
    assert labelled[1] < labelled[2]
    assert not labelled[2] & {image.path for image in same[2].setting.data.test}
    assert same[0].setting.data.test == same[2].setting.data.test
    assert same[0].setting.seen == {"dent", "scratch", "rust"}
    assert same[0].config.backbone == "scratch"


def test_labels_of_one_type_leave_half_of_it_to_test_on_as_seen() -> None:
    one = [job for job in unbalanced_jobs() if job.setting.name == unbalanced.ONE]

    [kind] = one[0].setting.seen
    left = [image.kind for image in one[0].setting.data.test]
    assert [len(job.labelled) for job in one] == [0, 5, 15]
    assert left.count(kind) == 15
    assert len(left) == 105


def test_a_share_that_labels_no_more_than_the_one_before_is_left_out() -> None:
    one = [job for job in unbalanced_jobs(0.0, 0.2, 0.4) if job.setting.name == unbalanced.ONE]

    assert [job.rate for job in one] == [0.0, 0.2]


def unbalanced_jobs(*rates: float) -> list[unbalanced.Job]:
    return list(
        unbalanced.jobs_of(options_of(rates=rates or (0.0, 0.05, 0.2), types=1, backbone="scratch"), [made_up_set()])
    )


def test_seen_and_unseen_types_are_ranked_apart() -> None:
    test = [TestImage(Path(str(i)), kind) for i, kind in enumerate(["good", "good", "dent", "rust", "rust"])]
    scores = {image.path: value for image, value in zip(test, [0.1, 0.5, 0.9, 0.3, 0.3], strict=True)}

    assert unbalanced.auroc(test, scores, {"dent"}, among=True) == 1.0
    assert unbalanced.auroc(test, scores, {"dent"}, among=False) == 0.5
    assert np.isnan(unbalanced.auroc(test, scores, {"dent", "rust"}, among=False))


def test_labels_are_measured_on_seen_and_unseen_types(tmp_path: Path) -> None:
    data = read_mvtec(write_texture_set(tmp_path / "texture", kinds=("square", "hole"), each=8))
    config = DetectorConfig(image_size=64, prototypes=50, effort=Effort.QUICK)
    setting = next(each for each in unbalanced.settings_of(data, 1, 0) if each.name == unbalanced.ONE)

    rows = unbalanced.measure(unbalanced.Job(setting, 0.3, config))

    assert [row["tested"] for row in rows] == ["seen", "unseen"]
    assert {row["labelled"] for row in rows} == {4}
    assert float(rows[0]["image_auroc"]) > 0.9
    assert float(rows[0]["classifier_auroc"]) > 0.7


def test_each_type_is_left_out_once_and_normal_images_are_mislabelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(labels, "MISLABELLED", (3, 12))
    data = read_mvtec(write_texture_set(tmp_path / "texture", kinds=("square", "hole"), each=8))
    config = DetectorConfig(image_size=64, prototypes=50, effort=Effort.QUICK)

    rows = labels.measure(Training(data, config))

    left_out = [row for row in rows if row["left_out"]]
    assert [(row["left_out"], row["labelled"]) for row in left_out[::2]] == [
        ("hole", 3),
        ("hole", 6),
        ("square", 3),
        ("square", 6),
    ]
    assert all(float(row["seen"]) > 0.9 for row in left_out)
    assert {row["labelled"] for row in rows if not row["left_out"]} == {3}
    assert all(float(row["mislabelled"]) > 0.8 for row in rows if not row["left_out"])


def test_hidden_anomalies_are_never_tested_on_and_every_share_is_tested_alike() -> None:
    few, rest_of_few = contamination.hide(made_up_set(), 0.05, seed=1)
    many, rest_of_many = contamination.hide(made_up_set(), 0.3, seed=1)

    assert (len(few), len(many)) == (5, 39)
    assert set(few) < set(many)
    assert rest_of_few == rest_of_many
    assert not set(many) & {image.path for image in rest_of_many.test}


@pytest.mark.parametrize("name", ablation.VARIANTS)
def test_what_the_ablation_replaces_exists(name: str) -> None:
    for owner, attribute, _ in ablation.VARIANTS[name].replaced:
        assert hasattr(owner, attribute)


def test_only_the_product_replaces_nothing() -> None:
    plain = [
        name
        for name, each in ablation.VARIANTS.items()
        if not each.replaced and each.prototypes == DetectorConfig.prototypes
    ]

    assert plain == [ablation.PRODUCT]


def test_the_mean_as_only_prototype_of_whitened_cells_gives_mahalanobis_distance(tmp_path: Path) -> None:
    cells = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))

    memory = ablation.mean_memory(cells, 10, torch.Generator())

    torch.testing.assert_close(memory.nearest(cells)[0], (cells - cells.mean(0)).norm(dim=1), rtol=1e-3, atol=1e-4)
    assert 0 <= int(memory.chosen) < 40


@pytest.mark.parametrize("choose", [ablation.random_memory, ablation.k_means_memory])
def test_other_memories_have_as_many_prototypes_and_name_candidates(choose: ablation.Choose) -> None:
    cells = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))

    memory, all_of_them = (choose(cells, count, torch.Generator().manual_seed(1)) for count in (10, 100))

    assert memory.prototypes.shape == (10, 3)
    assert memory.chosen.shape == (10,)
    assert float(memory.nearest(cells)[0].mean()) < float(cells.norm(dim=1).mean())
    assert len(all_of_them.prototypes) == 60


def test_diagonal_whitening_keeps_correlations() -> None:
    cells = torch.randn(500, 2, generator=torch.Generator().manual_seed(0)) @ torch.tensor([[3.0, 1.0], [0.0, 2.0]])

    whitened = ablation.diagonal_whitening(cells)(cells)

    assert whitened.std(0).tolist() == pytest.approx([1, 1], abs=0.01)
    assert float(torch.corrcoef(whitened.T)[0, 1]) == pytest.approx(float(torch.corrcoef(cells.T)[0, 1]), abs=1e-4)


def test_a_variant_runs_through_the_product_and_leaves_it_as_it_was(tmp_path: Path) -> None:
    data = read_mvtec(write_texture_set(tmp_path / "texture"))
    choose = PrototypeMemory.choose

    [row] = ablation.measure(ablation.Job(data, "memory and whitening off", 0))

    assert (row["part"], row["variant"]) == ("memory", "memory and whitening off")
    assert 0 <= float(row["image_auroc"]) <= 1
    assert PrototypeMemory.choose == choose
