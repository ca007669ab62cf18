"""Torchvision networks with seeded random weights for tests, and their feature maps computed by hand."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from anomaly_cli.detector.backbones.backbone import MEAN, STD, Backbone
from anomaly_cli.detector.backbones.compact_resnet import STRIDES, CompactResNet


def cut_network(patch: pytest.MonkeyPatch, folder: Path) -> Path:
    """Refuse every connection and empty the caches, which are then below a folder; return that of torch."""

    def refuse(*args: Any, **kwargs: Any) -> socket.socket:
        raise OSError("network is unreachable")

    patch.setattr(socket, "create_connection", refuse)
    patch.setattr(torch.hub, "get_dir", lambda: str(folder / "hub"))
    return folder / "hub" / "checkpoints"


def random_model(name: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model: nn.Module = torchvision.models.get_model(name, weights=None)
        randomise_statistics(model)
    return model.eval()


def random_compact_resnet() -> CompactResNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        network = CompactResNet()
        randomise_statistics(network)
    return network.eval()


def randomise_statistics(network: nn.Module) -> None:
    """Draw statistics that a mix-up of layers would show; those of a new network hide it."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.uniform_(module.weight, 0.7, 1.3)
            nn.init.uniform_(module.running_mean, -0.3, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2.0)


def random_images(count: int = 2, height: int = 96, width: int = 128) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0))


def normalised(images: Tensor) -> Tensor:
    return (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def saved(state: dict[str, Tensor], path: Path) -> Path:
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


def resnet_maps(model: Any, images: Tensor) -> dict[int, Tensor]:
    x = model.maxpool(model.relu(model.bn1(model.conv1(normalised(images)))))
    maps = {}
    for stride, layer in zip(STRIDES, (model.layer1, model.layer2, model.layer3, model.layer4), strict=True):
        maps[stride] = x = layer(x)
    return maps


def squeezenet_maps(model: Any, images: Tensor) -> dict[int, Tensor]:
    x = normalised(images)
    return {stride: model.features[:end](x) for stride, end in ((4, 5), (8, 8), (16, 13))}


@torch.inference_mode()
def assert_same_maps(backbone: Backbone, expected: dict[int, Tensor]) -> None:
    maps = backbone(random_images())
    assert len(maps) == len(backbone.strides) >= 2
    for stride, each in zip(backbone.strides, maps, strict=True):
        torch.testing.assert_close(each, expected[stride], rtol=1e-4, atol=1e-4)


def shapes(backbone: Backbone) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in backbone.state_dict().items()}
