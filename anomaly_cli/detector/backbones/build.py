"""Build a backbone by its name: `embedded`, `scratch`, or a network of torchvision or timm."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import nn

from anomaly_cli.detector.backbones.backbone import EMBEDDED, SCRATCH, TURNS, Backbone
from anomaly_cli.detector.backbones.compact_resnet import STRIDES, CompactResNet
from anomaly_cli.detector.backbones.timm_networks import timm_backbone, timm_network, with_outputs
from anomaly_cli.detector.backbones.torchvision_networks import (
    is_torchvision,
    torchvision_backbone,
    torchvision_network,
    with_taps,
)
from anomaly_cli.errors import ConfigError, WeightsError

# A third of the work of `embedded`: so many views an hour are worth more than width (docs/method.md).
SCRATCH_WIDTHS = (32, 64, 128, 256)
SCRATCH_DEPTHS = (1, 1, 1, 1)
SCRATCH_STEM_WIDTH = 16


def build_backbone(name: str, weights: Path | None = None, seed: int = 0) -> Backbone:
    """Build a backbone in eval mode with its starting weights.

    Args:
        name: `embedded`, `scratch`, or a model name of torchvision or timm.
        weights: file with the pretrained weights of such a model (safetensors, or a state dict of torch).
        seed: of the random weights of `scratch`.

    Raises:
        ConfigError: the name is unknown, or weights are given to a kind that takes none.
        MissingExtraError: only timm may know the name, and it is not installed.
        WeightsError: the weights cannot be found, read or do not fit.
    """
    if name in (EMBEDDED, SCRATCH):
        if weights is not None:
            raise ConfigError(
                f"the {name} backbone takes no weights file; name a model of torchvision or timm with --backbone"
            )
        backbone = _scratch_backbone(seed) if name == SCRATCH else Backbone(name, _embedded_network(), STRIDES)
    else:
        build = torchvision_backbone if is_torchvision(name) else timm_backbone
        backbone = build(name, weights)
    backbone = backbone.to(memory_format=torch.channels_last).eval()
    return backbone if name == SCRATCH else backbone.prepare_for_inference()


def empty_backbone(name: str) -> Backbone:
    """Build a backbone whose weights a checkpoint is about to fill: nothing is read or downloaded.

    Raises:
        ConfigError: the name is unknown.
        MissingExtraError: only timm may know the name, and it is not installed.
    """
    if name == EMBEDDED:
        backbone = Backbone(name, CompactResNet().eval().fuse(), STRIDES)
    elif name == SCRATCH:
        backbone = _scratch_backbone(0)
        cast(CompactResNet, backbone.network.eval()).fuse()
    elif is_torchvision(name):
        backbone = with_taps(name, torchvision_network(name))
    else:
        backbone = with_outputs(name, timm_network(name))
    return backbone.to(memory_format=torch.channels_last).eval()


def _scratch_backbone(seed: int) -> Backbone:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = CompactResNet(SCRATCH_WIDTHS, SCRATCH_DEPTHS, SCRATCH_STEM_WIDTH)
        return Backbone(SCRATCH, network, STRIDES, turn_head=nn.Linear(SCRATCH_WIDTHS[-1], TURNS))


def _embedded_network() -> CompactResNet:
    file = resources.files("anomaly_cli.detector.backbones") / "weights" / "embedded.safetensors"
    network = CompactResNet()
    try:
        state = load(file.read_bytes())
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"the embedded weights are damaged, install the package again: {error}") from error
    counters = {name for name in network.state_dict() if name.endswith("num_batches_tracked")}
    missing, unexpected = network.load_state_dict({k: v.float() for k, v in state.items()}, strict=False)
    if set(missing) - counters or unexpected:
        raise WeightsError("the embedded weights are of another version, install the package again")
    return network.eval().fuse()
