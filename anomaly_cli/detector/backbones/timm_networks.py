"""Any network of timm as a backbone: strides of a convolutional network, depths of a transformer."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anomaly_cli.config import DetectorConfig
from anomaly_cli.detector.backbones.backbone import CLASS_TOKEN, EMBEDDED, SCRATCH, Backbone
from anomaly_cli.detector.backbones.compact_resnet import STRIDES
from anomaly_cli.detector.backbones.pretrained_weights import from_hub_or_url, load_into, read_weights
from anomaly_cli.detector.backbones.transformer import Transformer, chosen_blocks
from anomaly_cli.detector.backbones.weight_names import with_dinov2_names
from anomaly_cli.errors import ConfigError, MissingExtraError, WeightsError

SIZE_OPTIONS: tuple[dict[str, Any], ...] = (
    {"dynamic_img_size": True},
    {"strict_img_size": False},
    {},
)  # what a network takes to see any size
PROBE_CELLS = 4, 5  # of stride 32 or of a patch, in the empty image that a network is tried with


class Pyramid(nn.Module):
    """A network of timm that returns its last maps at some strides."""

    def __init__(self, network: Any, indices: list[int]) -> None:
        """Wrap a network.

        Args:
            network: with `forward_intermediates`.
            indices: of the maps among its `feature_info`.
        """
        super().__init__()
        self.network = network
        self.indices = indices

    def forward(self, x: Tensor) -> list[Tensor]:
        """Compute the map of every stride: (N, 3, H, W) to (N, D_s, H / stride, W / stride)."""
        maps: list[Tensor] = self.network.forward_intermediates(x, indices=self.indices, intermediates_only=True)
        # With cells in another order the exporter cannot prove for every size how to lay them out.
        return [each.contiguous() for each in maps] if torch.compiler.is_exporting() else maps


def timm_network(name: str) -> Any:
    """Build a network of timm with random weights, without classifier, for images of any size.

    Raises:
        MissingExtraError: timm is not installed.
        ConfigError: timm has no model of that name.
    """
    if find_spec("timm") is None:
        raise MissingExtraError(
            f"unknown backbone {name}: use {EMBEDDED}, {SCRATCH} or a torchvision classification model such as "
            "resnet18; for models of timm such as dinov2: pip install 'anomaly-cli[backbones]'"
        )
    import timm

    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture) or (tag and not timm.is_model_pretrained(name)):
        known = f"{EMBEDDED}, {SCRATCH}, a torchvision classification model such as resnet18, or a model of timm"
        raise ConfigError(f"unknown backbone {name}: use {known} such as dinov2")
    for options in SIZE_OPTIONS:
        try:
            network = timm.create_model(name, pretrained=False, num_classes=0, **options)
        except TypeError:
            if not options:
                raise
        else:
            break
    return network.eval()


def with_outputs(name: str, network: Any) -> Backbone:
    """Take the maps of some strides, or where all maps have one stride those of some depths.

    Raises:
        ConfigError: the network has no such maps, or takes images of one size only.
    """
    reductions = [int(each["reduction"]) for each in getattr(network, "feature_info", [])]
    if not hasattr(network, "forward_intermediates") or not reductions:
        raise ConfigError(f"backbone {name} gives no feature maps")
    config = network.pretrained_cfg
    normalisation = tuple(config["mean"]), tuple(config["std"])
    step = DetectorConfig(backbone=name).size_step
    if len(reductions) > 1 and len(set(reductions)) == 1:
        if step % reductions[0]:
            raise ConfigError(f"backbone {name} has patches of {reductions[0]} pixels, which do not divide {step}")
        blocks = chosen_blocks(len(reductions))
        transformer = Transformer(network, blocks, patch=reductions[0])
        names = (*(f"block_{block}" for block in blocks), *((CLASS_TOKEN,) if transformer.has_class_token else ()))
        backbone = Backbone(name, transformer, (reductions[0],) * len(blocks), names, normalisation)
    else:
        last = {stride: i for i, stride in enumerate(reductions) if stride in STRIDES}
        if not last:
            raise ConfigError(f"backbone {name} gives no feature maps at strides 4 to 32")
        backbone = Backbone(name, Pyramid(network, [*last.values()]), tuple(last), normalisation=normalisation)
    backbone.libraries = ("timm",)
    _try(backbone.eval(), step)
    return backbone


def _try(backbone: Backbone, step: int) -> None:
    """Run an empty image through.

    Raises:
        ConfigError: the network takes images of another size only.
    """
    sides = [step * cells for cells in PROBE_CELLS]
    try:
        with torch.inference_mode():
            backbone(torch.zeros(1, 3, *sides))
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"backbone {backbone.name} takes no images of {sides[0]} by {sides[1]}: {reason}") from error


def timm_backbone(name: str, weights: Path | None) -> Backbone:
    """Build a network of timm with pretrained weights as a backbone.

    Args:
        name: of a model of timm, with or without the tag of its weights.
        weights: file of its weights, by the names of timm, of the first release, or of transformers (DINOv2); `None`
            takes what timm names, from a cache or the network.

    Raises:
        ConfigError: no such model, or one without feature maps.
        MissingExtraError: timm is not installed.
        WeightsError: the weights cannot be had or do not fit.
    """
    network = timm_network(name)
    backbone = with_outputs(name, network)
    if weights is not None:
        source, state = str(weights), read_weights(weights)
    else:
        source, state = from_hub_or_url(name, network.pretrained_cfg)
    load_into(network, _adapted(state, network, f"{source} does not fit {name}"), source, name)
    return backbone


def _adapted(state: dict[str, Tensor], network: Any, misfit: str) -> dict[str, Tensor]:
    """Convert the names and shapes of other releases to those of timm, and leave the classifier out.

    Raises:
        WeightsError: what is missing, or a shape, makes that impossible.
    """
    convert = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    try:
        state = with_dinov2_names(state)
        state = state if convert is None else convert(state, network)
    except KeyError as error:
        raise WeightsError(f"{misfit}: {error.args[0]} is missing") from error
    except (RuntimeError, ValueError, AttributeError, TypeError, IndexError) as error:
        raise WeightsError(f"{misfit}: a tensor has another shape") from error
    classifier = network.pretrained_cfg.get("classifier") or ()
    parts = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    return {key: value for key, value in state.items() if not key.startswith(tuple(f"{part}." for part in parts))}
