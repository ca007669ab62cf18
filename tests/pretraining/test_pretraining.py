"""Pretraining: widening a network keeps what it computes, a run can be limited and continued, views are seeded."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from packing import pack
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from anomaly_cli.detector.backbones.compact_resnet import WIDTHS, CompactResNet
from pretraining import train as pretraining
from pretraining.pictures import Pictures, load_pictures
from pretraining.teacher import RecordedTeacher
from pretraining.train import Recipe
from pretraining.views import random_views
from pretraining.widen import widened

GPU = os.environ.get("ANOMALY_TEST_DEVICE", "cuda")
NO_GPU = GPU == "cuda" and not torch.cuda.is_available()
DEVICES = ["cpu", pytest.param(GPU, marks=[pytest.mark.gpu, pytest.mark.skipif(NO_GPU, reason="torch sees no GPU")])]
TINY = Recipe(steps=2, batch_size=2, warmup_steps=2)


def network(widths: tuple[int, ...] = WIDTHS, stem_width: int = 32) -> CompactResNet:
    torch.manual_seed(0)
    made = CompactResNet(widths, stem_width=stem_width)
    for name, value in made.state_dict().items():  # as after training: no normalisation is the identity
        if ".norm." in name and value.is_floating_point():
            value.copy_(torch.rand(value.shape) + 0.5)
    return made.eval()


def weights(of: CompactResNet) -> dict[str, Tensor]:
    return {name: value for name, value in of.state_dict().items() if value.is_floating_point()}


@torch.inference_mode()
def test_a_widened_network_computes_the_same_and_only_noise_parts_the_copies() -> None:
    narrow, images = network((8, 24, 40, 320), stem_width=20), torch.rand(2, 3, 64, 96)
    same, noisy = CompactResNet().eval(), CompactResNet().eval()
    same.load_state_dict(widened(weights(narrow), seed=3, noise=0), strict=False)
    noisy.load_state_dict(widened(weights(narrow), seed=3), strict=False)

    for old, new, other in zip(narrow(images), same(images), noisy(images), strict=True):
        torch.testing.assert_close(new[:, : old.shape[1]], old, rtol=1e-3, atol=1e-3)
        assert not torch.allclose(other[:, : old.shape[1]], old, rtol=1e-3, atol=1e-3)


def test_a_network_that_is_wide_enough_stays_as_it_is() -> None:
    before = weights(network())

    after = widened(before, seed=3)

    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Pictures:
    """Twelve pictures of noise in two classes."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    made = [Image.fromarray(rng.integers(0, 256, (40, 60, 3), np.uint8)) for _ in range(12)]
    pack(folder / "noise", made, ["one", "two"])
    return load_pictures([folder], folder / "cache")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random convolutions that halve the grid five times, each a bottleneck, and a last one for the embedding."""
    torch.manual_seed(0)
    ops, tensors = [], {}
    for number, (width, stride) in enumerate([(4, 2)] * 5 + [(6, 1)]):
        source = "input" if number == 0 else str(number - 1)
        ops.append({"kind": "conv", "in": source, "out": str(number), "stride": stride, "depthwise": False})
        ops[-1] |= {"relu6": stride == 1, "at": 2 ** min(number + 1, 5)}
        tensors[f"w{number}"] = torch.randn(width, 3 if number == 0 else 4, 3, 3) / 3
        tensors[f"b{number}"] = torch.randn(width)
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    save_file(tensors, path, {"ops": json.dumps(ops)})
    return path


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"BATCHES_FOR_STATISTICS": 2, "LOG_EVERY": 1, "TIMED_STEPS": 2, "SAVE_EVERY": 2}.items():
        monkeypatch.setattr(pretraining, name, value)


def steps_of(out: Path) -> list[int]:
    return [json.loads(line)["step"] for line in out.with_suffix(".jsonl").read_text().splitlines()]


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("name", DEVICES)
def test_a_run_starts_from_weights_and_a_longer_one_goes_on_where_it_ended(
    pictures: Pictures, teacher: Path, tmp_path: Path, name: str
) -> None:
    device, out, start = torch.device(name), tmp_path / "out.safetensors", tmp_path / "start.safetensors"
    save_file({key: value.contiguous() for key, value in weights(network()).items()}, start)
    teachers = [RecordedTeacher(teacher).to(device).eval()]

    pretraining.train(pictures, teachers, TINY, out, device, start)
    first = load_file(out)
    pretraining.train(pictures, teachers, Recipe(steps=3, batch_size=2, warmup_steps=2), out, device, start)

    assert steps_of(out) == [1, 2, 3]
    assert first.keys() == load_file(out).keys() == weights(network()).keys()
    learned = {key: value for key, value in load_file(start).items() if "running" not in key}
    moved = [float((first[key].float() - value).abs().max()) for key, value in learned.items()]
    assert 0 < max(moved) < 0.02


@pytest.mark.usefixtures("short")
def test_minutes_set_the_number_of_steps(
    pictures: Pictures, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, teachers = tmp_path / "out.safetensors", [RecordedTeacher(teacher).eval()]
    monkeypatch.setattr(pretraining, "steps_within", lambda left_s, timed_s: 1 if 0 < timed_s < left_s < 6000 else 0)

    pretraining.train(pictures, teachers, TINY, out, torch.device("cpu"), minutes=100)
    pretraining.train(pictures, teachers, TINY, out, torch.device("cpu"), minutes=0)

    assert steps_of(out) == [1, 2, 3, 4, 5]


def test_steps_fit_into_the_seconds_left() -> None:
    assert pretraining.steps_within(90, 10) == 9 * pretraining.TIMED_STEPS
    assert pretraining.steps_within(-1, 10) == 0


def test_views_of_a_seed_are_the_same_and_noise_has_its_own_source() -> None:
    images = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(1))

    def views(noise_seed: int | None) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(2)
        noise = None if noise_seed is None else torch.Generator().manual_seed(noise_seed)
        return random_views(images, 16, generator, noise), torch.rand(3, generator=generator)

    first, after = views(3)
    assert torch.equal(first, views(3)[0])
    assert not torch.equal(first, views(4)[0])
    assert torch.equal(after, views(4)[1])
    assert torch.equal(views(None)[0], views(None)[0])
