"""Any torchvision network as a backbone: its maps at strides 4 to 32, found by a probe."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor, nn

from anomaly_cli.detector.backbones.backbone import Backbone
from anomaly_cli.detector.backbones.compact_resnet import STRIDES
from anomaly_cli.detector.backbones.pretrained_weights import cached_or_downloaded, load_into, read_weights
from anomaly_cli.errors import ConfigError

PROBE_SIZE = 128  # pixels; side of the empty image that finds where a torchvision network halves its maps
WARNING_NETWORKS = {"googlenet", "inception_v3"}  # warn about slow initial weights unless told to skip them
CLASSIFIER_PARTS = {"avgpool", "classifier", "fc", "head", "heads", "flatten"}


def is_torchvision(name: str) -> bool:
    """Whether torchvision has a classification model of that name."""
    import torchvision  # here, because it takes about as long to import as torch, and the default does without

    return name in torchvision.models.list_models(module=torchvision.models)


def torchvision_network(name: str) -> nn.Module:
    """Build a torchvision network, one of `is_torchvision`, with random weights."""
    import torchvision

    settings = {"init_weights": False} if name in WARNING_NETWORKS else {}
    network: nn.Module = torchvision.models.get_model(name, weights=None, **settings)
    return network.eval()


def with_taps(name: str, network: nn.Module) -> Backbone:
    """Tap the last map of each stride from 4 to 32, found by running an empty image through the graph."""
    from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

    try:
        nodes = get_graph_node_names(network, suppress_diff_warning=True)[1]
        with torch.inference_mode():
            outputs = create_feature_extractor(network, nodes, suppress_diff_warning=True)(
                torch.zeros(1, 3, PROBE_SIZE, PROBE_SIZE)
            )
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        raise ConfigError(f"backbone {name} gives no feature maps: {error}") from error
    taps: dict[int, str] = {}
    coarsest = 1
    for node, value in outputs.items():
        if node.split(".")[0] in CLASSIFIER_PARTS:
            break
        if isinstance(value, Tensor) and value.ndim == 4 and value.shape[-1] > 1:
            stride = 2 ** round(math.log2(PROBE_SIZE / value.shape[-1]))  # without padding a map is a cell short
            if stride >= coarsest:
                taps[stride] = node
                coarsest = stride
    strides = tuple(stride for stride in STRIDES if stride in taps)
    if not strides:
        raise ConfigError(f"backbone {name} gives no feature maps at strides 4 to 32")
    extractor = create_feature_extractor(
        network, {taps[stride]: str(stride) for stride in strides}, suppress_diff_warning=True
    )
    return Backbone(name, extractor.eval(), strides)


def torchvision_backbone(name: str, weights: Path | None) -> Backbone:
    """Build a torchvision network with pretrained weights as a backbone.

    Args:
        name: of a torchvision classification model.
        weights: file of its weights; `None` takes torchvision's own, from the cache or the network.

    Raises:
        ConfigError: the network gives no feature maps.
        WeightsError: the weights cannot be had or do not fit.
    """
    import torchvision

    network = torchvision_network(name)
    url = torchvision.models.get_model_weights(name).DEFAULT.url
    state = read_weights(weights) if weights is not None else cached_or_downloaded(name, url)
    # The classifier is not used here, and feature-only files leave it out.
    load_into(network, state, str(weights or url), name, classifier=("classifier.", "fc.", "head.", "heads."))
    return with_taps(name, network)
