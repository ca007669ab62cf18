"""Backbones of all three kinds: strides, shapes, seeds and structure; the weights files have tests of their own."""

from __future__ import annotations

import warnings
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import normalised, random_compact_resnet, random_images, shapes
from torch import Tensor, nn

from anomaly_cli.detector.backbones import timm_networks
from anomaly_cli.detector.backbones.backbone import Backbone
from anomaly_cli.detector.backbones.build import SCRATCH_WIDTHS, build_backbone, empty_backbone
from anomaly_cli.detector.backbones.compact_resnet import DEPTHS, STRIDES, WIDTHS, CompactResNet, ConvNorm
from anomaly_cli.errors import ConfigError


@pytest.mark.parametrize(("name", "widths"), [("embedded", WIDTHS), ("scratch", SCRATCH_WIDTHS)])
@torch.inference_mode()
def test_our_own_kinds_give_a_map_at_every_stride(name: str, widths: tuple[int, ...]) -> None:
    backbone = build_backbone(name)

    maps = backbone(random_images(2, 96, 128))

    assert backbone.strides == STRIDES
    assert [tuple(m.shape) for m in maps] == [
        (2, width, 96 // stride, 128 // stride) for width, stride in zip(widths, STRIDES, strict=True)
    ]
    assert all(m.isfinite().all() for m in maps)
    assert not backbone.training


@pytest.mark.parametrize(("name", "widths"), [("resnet18", (64, 128, 256, 512)), ("mobilenet_v3_small", None)])
@torch.inference_mode()
def test_a_torchvision_network_gives_a_map_at_every_stride(name: str, widths: tuple[int, ...] | None) -> None:
    backbone = empty_backbone(name)

    maps = backbone(random_images(1, 96, 128))

    assert backbone.strides == STRIDES
    assert [tuple(m.shape[2:]) for m in maps] == [(96 // stride, 128 // stride) for stride in STRIDES]
    assert widths is None or tuple(m.shape[1] for m in maps) == widths


def test_a_network_without_padding_has_its_map_at_stride_16() -> None:
    assert empty_backbone("squeezenet1_1").strides == (4, 8, 16)


@torch.inference_mode()
def test_images_of_a_batch_do_not_influence_each_other() -> None:
    backbone, images = build_backbone("embedded"), random_images(3)

    batch = backbone(images)
    single = [backbone(image[None]) for image in images]

    for i, each in enumerate(batch):
        torch.testing.assert_close(each, torch.cat([maps[i] for maps in single]), rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_images_are_normalised_as_imagenet_is() -> None:
    class Echo(nn.Module):
        def forward(self, x: Tensor) -> list[Tensor]:
            return [x]

    images = random_images()

    torch.testing.assert_close(Backbone("echo", Echo(), (1,))(images)[0], normalised(images))


@torch.inference_mode()
def test_fusing_batch_normalisation_changes_nothing() -> None:
    network = random_compact_resnet()
    images = random_images()
    before = network(images)

    after = network.fuse()(images)

    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    for each, expected in zip(after, before, strict=True):
        torch.testing.assert_close(each, expected, rtol=0, atol=1e-4)


@torch.inference_mode()
def test_fusing_twice_is_fusing_once() -> None:
    network, images = random_compact_resnet().fuse(), random_images()
    once = network(images)

    twice = network.fuse()(images)

    assert all(torch.equal(a, b) for a, b in zip(once, twice, strict=True))


@pytest.mark.parametrize(("height", "width"), [(64, 64), (65, 97), (32, 200)])
@torch.inference_mode()
def test_odd_sides_round_up(height: int, width: int) -> None:
    maps = random_compact_resnet()(random_images(1, height, width))

    assert [tuple(m.shape[2:]) for m in maps] == [(-(-height // s), -(-width // s)) for s in STRIDES]


def test_the_compact_network_has_the_depth_it_says() -> None:
    network = CompactResNet()

    assert tuple(len(stage) for stage in network.stages if isinstance(stage, nn.Sequential)) == DEPTHS
    assert sum(isinstance(module, ConvNorm) for module in network.modules()) == 1 + 2 * sum(DEPTHS) + len(DEPTHS)


def test_the_embedded_weights_are_small_enough_for_a_package() -> None:
    file = resources.files("anomaly_cli.detector.backbones") / "weights" / "embedded.safetensors"

    assert len(file.read_bytes()) <= 12_000_000


def test_scratch_is_seeded() -> None:
    first, again, other = (build_backbone("scratch", seed=seed).state_dict() for seed in (1, 1, 2))

    key = "network.stem.conv.weight"
    assert torch.equal(first[key], again[key])
    assert not torch.equal(first[key], other[key])


def test_scratch_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)

    build_backbone("scratch", seed=1)

    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("name", ["embedded", "scratch"])
def test_our_own_kinds_take_no_weights_file(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"the {name} backbone takes no weights file"):
        build_backbone(name, tmp_path / "weights.pth")


@pytest.mark.parametrize("name", ["resnet19", "", "Embedded", "maskrcnn_resnet50_fpn"])
@pytest.mark.parametrize("build", [build_backbone, empty_backbone])
def test_an_unknown_name_is_refused(build: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timm_networks, "find_spec", lambda _: None)  # with timm: test_timm_networks

    with pytest.raises(ConfigError) as raised:
        build(name)

    assert str(raised.value) == (
        f"unknown backbone {name}: use embedded, scratch or a torchvision classification model such as resnet18; "
        "for models of timm such as dinov2: pip install 'anomaly-cli[backbones]'"
    )


def test_a_network_without_feature_maps_is_refused() -> None:
    with pytest.raises(ConfigError, match="backbone vit_b_32 gives no feature maps"):
        empty_backbone("vit_b_32")


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_building_an_old_network_is_silent(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        empty_backbone(name)


@pytest.mark.parametrize("device", ["cpu", "meta"])  # the second stands for a GPU, of which it has all but values
def test_an_empty_scratch_backbone_has_the_structure_of_a_trained_one(device: str) -> None:
    built = build_backbone("scratch").to(device)

    built.prepare_for_inference()

    assert shapes(empty_backbone("scratch")) == shapes(built)


@torch.inference_mode()
def test_the_state_of_a_built_backbone_makes_an_empty_one_equal() -> None:
    built, empty = build_backbone("embedded"), empty_backbone("embedded")

    empty.load_state_dict(built.state_dict())

    empty.prepare_for_inference()
    for each, expected in zip(empty(random_images()), built(random_images()), strict=True):
        torch.testing.assert_close(each, expected)
