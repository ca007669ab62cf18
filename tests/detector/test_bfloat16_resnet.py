"""The packed network computes what the network does, on whatever the processor does fastest."""

import pytest
import torch
from networks import random_compact_resnet

from anomaly_cli.detector import devices
from anomaly_cli.detector.backbones import bfloat16_resnet
from anomaly_cli.detector.backbones.bfloat16_resnet import PrepackedResNet, can_prepack, prepack
from anomaly_cli.detector.backbones.build import build_backbone
from anomaly_cli.detector.backbones.compact_resnet import CompactResNet

needs_packing = pytest.mark.skipif(not can_prepack(), reason="this build of torch cannot pack convolutions")


def fused() -> CompactResNet:
    return random_compact_resnet().fuse()


@needs_packing
@pytest.mark.parametrize("sides", [(64, 64), (96, 32), (33, 47)])
@torch.inference_mode()
def test_the_packed_network_in_float32_is_the_network(sides: tuple[int, int]) -> None:
    network = fused()
    images = torch.randn(2, 3, *sides, generator=torch.Generator().manual_seed(0))

    packed = PrepackedResNet(network, torch.float32)(images.contiguous(memory_format=torch.channels_last))[0]

    for ours, expected in zip(packed, network(images), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


@needs_packing
@pytest.mark.skipif(not devices.prefers_bfloat16(), reason="this processor has no bfloat16")
@pytest.mark.parametrize("sides", [(64, 64), (32, 128), (128, 32), (64, 32)])
@torch.inference_mode()
def test_bfloat16_moves_the_maps_by_less_than_two_percent(sides: tuple[int, int]) -> None:
    backbone = build_backbone("embedded")
    images = torch.rand(1, 3, *sides, generator=torch.Generator().manual_seed(0))

    packed = backbone(images)
    expected = backbone.network((images - backbone.mean) / backbone.std)

    for ours, exact in zip(packed, expected, strict=True):
        assert ours.dtype == torch.float32
        assert float((ours - exact).norm() / exact.norm()) < 0.02


@needs_packing
@torch.inference_mode()
def test_an_image_has_the_same_maps_alone_and_among_others() -> None:
    backbone = build_backbone("embedded")
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))

    together = backbone(images)

    for i in range(3):
        for ours, expected in zip(backbone(images[i : i + 1]), together, strict=True):
            torch.testing.assert_close(ours[0], expected[i], rtol=1e-2, atol=1e-2)


@needs_packing
@pytest.mark.parametrize("sides", [(32, 32), (64, 32), (64, 64), (96, 64)])
@torch.inference_mode()
def test_images_of_two_sizes_have_the_same_maps_side_by_side_as_apart(sides: tuple[int, int]) -> None:
    backbone = build_backbone("embedded")
    large, small = torch.rand(2, 3, 128, 160), torch.rand(3, 3, *sides)

    maps_of_large, maps_of_small = backbone.forward_batches([large, small])

    assert all(map(torch.equal, maps_of_large, backbone(large)))
    assert all(map(torch.equal, maps_of_small, backbone(small)))


@needs_packing
@pytest.mark.skipif(not devices.prefers_bfloat16(), reason="this processor has no bfloat16")
@torch.inference_mode()
def test_weights_are_laid_out_once_a_size_of_image(capfd: pytest.CaptureFixture[str]) -> None:
    backbone = build_backbone("embedded")
    sizes = [torch.rand(1, 3, 64, 64), torch.rand(2, 3, 96, 160), torch.rand(1, 3, 256, 256)]
    first = [backbone(images) for images in sizes]

    with torch.backends.mkldnn.verbose(torch.backends.mkldnn.VERBOSE_ON):
        second = [backbone(images) for images in sizes]

    steps = capfd.readouterr().out
    assert "convolution" in steps
    assert "reorder" not in steps
    assert all(torch.equal(a, b) for x, y in zip(first, second, strict=True) for a, b in zip(x, y, strict=True))


@needs_packing
@torch.inference_mode()
def test_of_more_sizes_than_are_kept_laid_out_the_oldest_make_room() -> None:
    backbone = PrepackedResNet(fused(), torch.bfloat16 if devices.prefers_bfloat16() else torch.float32)
    sizes = [torch.rand(1, 3, 64, 64 + 32 * i) for i in range(bfloat16_resnet.LAYOUTS + 2)]

    first, second = ([backbone(images)[0] for images in sizes] for _ in range(2))

    assert backbone.stem._laid_out.cache_info().currsize == bfloat16_resnet.LAYOUTS
    assert all(torch.equal(a, b) for x, y in zip(first, second, strict=True) for a, b in zip(x, y, strict=True))


def test_a_build_without_the_operations_keeps_the_plain_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bfloat16_resnet, "can_prepack", lambda: False)

    assert prepack(fused()) is None
    assert build_backbone("embedded")._packed is None


def test_float32_can_be_asked_for_and_is_no_longer_what_a_journal_was_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANOMALY_FLOAT32", "1")

    packed = build_backbone("embedded")._packed

    assert not devices.prefers_bfloat16()
    assert packed is None or packed.dtype == torch.float32
    assert devices.processor().endswith(" float32")
