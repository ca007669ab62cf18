"""Backbones: image batch in, feature maps at several strides out; three kinds behind one class.

`embedded` reads the weights shipped in this package, `scratch` starts from random weights, any other name is a
torchvision model with its pretrained weights from a file, torch's cache or the network.
"""

from __future__ import annotations

import math
import socket
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Self
from urllib.error import URLError
from urllib.parse import urlparse

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from anomaly_cli.compact_resnet import STRIDES, CompactResNet
from anomaly_cli.errors import ConfigError, WeightsError
from anomaly_cli.packed_resnet import PackedResNet, pack

EMBEDDED = "embedded"
SCRATCH = "scratch"
MEAN = (0.485, 0.456, 0.406)  # of ImageNet's pixels, as every torchvision backbone expects
STD = (0.229, 0.224, 0.225)
PROBE_SIZE = 128  # pixels; side of the empty image that finds where a torchvision network halves its maps
CONNECT_TIMEOUT_S = 3.0
WARNING_NETWORKS = {"googlenet", "inception_v3"}  # warn about slow initial weights unless told to skip them
CLASSIFIER_PARTS = {"avgpool", "classifier", "fc", "head", "heads", "flatten"}


class Backbone(nn.Module):
    """Network that turns images into one feature map a stride."""

    mean: Tensor
    std: Tensor

    def __init__(self, name: str, network: nn.Module, strides: tuple[int, ...]) -> None:
        super().__init__()
        self.name = name
        self.network = network
        self.strides = strides
        self._packed: PackedResNet | None = None
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Compute the feature map of every stride.

        Args:
            images: (N, 3, H, W) float RGB in [0, 1].

        Returns:
            One (N, D_s, h_s, w_s) map a stride, finest first.
        """
        return self.side_by_side([images])[0]

    def side_by_side(self, batches: Sequence[Tensor]) -> list[list[Tensor]]:
        """Compute what `forward` does on batches of different sizes, together where that is faster."""
        inputs = [((x - self.mean) / self.std).contiguous(memory_format=torch.channels_last) for x in batches]
        if self._packed is not None and inputs[0].device.type == "cpu" and not torch.compiler.is_compiling():
            return self._packed(*inputs)
        network: Callable[[Tensor], Any] = self.network
        answers = [network(x) for x in inputs]
        return [list(maps.values()) if isinstance(maps, dict) else list(maps) for maps in answers]

    def freeze(self) -> Self:
        """Take the weights for final, for inference alone from here on; makes it faster where that is possible."""
        if isinstance(self.network, CompactResNet) and self.mean.device.type == "cpu":
            self._packed = pack(self.network.eval().fuse())
        return self


def build_backbone(name: str, weights: Path | None = None, seed: int = 0) -> Backbone:
    """Build a backbone in eval mode with its starting weights.

    Args:
        name: `embedded`, `scratch` or a torchvision model name.
        weights: file with the pretrained weights of a torchvision model (safetensors, or a state dict of torch).
        seed: of the random weights of `scratch`.

    Raises:
        ConfigError: the name is unknown, or weights are given to a kind that takes none.
        WeightsError: the weights cannot be found, read or do not fit.
    """
    if name in (EMBEDDED, SCRATCH):
        if weights is not None:
            raise ConfigError(f"the {name} backbone takes no weights file; name a torchvision model with --backbone")
        network = _scratch_network(seed) if name == SCRATCH else _embedded_network()
        backbone = Backbone(name, network, STRIDES)
    else:
        backbone = _torchvision_backbone(name, weights)
    backbone = backbone.to(memory_format=torch.channels_last).eval()
    return backbone if name == SCRATCH else backbone.freeze()


def empty_backbone(name: str) -> Backbone:
    """Build a backbone whose weights a checkpoint is about to fill: nothing is read or downloaded.

    Raises:
        ConfigError: the name is unknown.
    """
    if name in (EMBEDDED, SCRATCH):
        backbone = Backbone(name, CompactResNet().eval().fuse(), STRIDES)
    else:
        backbone = _with_taps(name, _torchvision_network(name))
    return backbone.to(memory_format=torch.channels_last).eval()


def _scratch_network(seed: int) -> CompactResNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CompactResNet()


def _embedded_network() -> CompactResNet:
    file = resources.files("anomaly_cli") / "weights" / "embedded.safetensors"
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


def _torchvision_network(name: str) -> nn.Module:
    import torchvision  # here, because it takes about as long to import as torch, and the default does without

    if name not in torchvision.models.list_models(module=torchvision.models):
        known = f"{EMBEDDED}, {SCRATCH} or a torchvision classification model such as resnet18"
        raise ConfigError(f"unknown backbone {name}: use {known}")
    settings = {"init_weights": False} if name in WARNING_NETWORKS else {}
    network: nn.Module = torchvision.models.get_model(name, weights=None, **settings)
    return network.eval()


def _with_taps(name: str, network: nn.Module) -> Backbone:
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


def _torchvision_backbone(name: str, weights: Path | None) -> Backbone:
    import torchvision

    network = _torchvision_network(name)
    url = torchvision.models.get_model_weights(name).DEFAULT.url
    state = _read_weights(weights) if weights is not None else _cached_or_downloaded(name, url)
    try:
        missing, unexpected = network.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise WeightsError(f"{weights or url} does not fit {name}: a tensor has another shape") from error
    # A classifier is of no use here, and feature-only files leave it out.
    missing = [key for key in missing if not key.startswith(("classifier.", "fc.", "head.", "heads."))]
    if missing or unexpected:
        key = (missing or unexpected)[0]
        raise WeightsError(f"{weights or url} does not fit {name}: {key} is {'missing' if missing else 'unknown'}")
    return _with_taps(name, network)


def _read_weights(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise WeightsError(f"no such weights file: {path}")
    try:
        state = _parsed(path)
    except Exception as error:  # a foreign file makes the unpickler raise whatever it likes
        raise WeightsError(f"{path} is not a weights file (safetensors or a torch state dict)") from error
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise WeightsError(f"{path} holds no state dict")
    for name, value in state.items():
        if not bool(torch.isfinite(value).all()):
            raise WeightsError(f"{path} holds values that are not finite: {name}")
    return state


def _parsed(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return load(path.read_bytes())
    return torch.load(path, map_location="cpu", weights_only=True)


def _cached_or_downloaded(name: str, url: str) -> dict[str, Tensor]:
    target = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
    if not target.is_file():
        _require_connection(name, url, target)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(target), progress=False)
        except (OSError, URLError, RuntimeError) as error:
            raise WeightsError(_missing_weights(name, url, target)) from error
    return _read_weights(target)


def _require_connection(name: str, url: str, target: Path) -> None:
    """Fail within seconds where there is no network, instead of after the downloader's retries."""
    host = urlparse(url).hostname or ""
    try:
        socket.create_connection((host, 443), CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise WeightsError(_missing_weights(name, url, target)) from error


def _missing_weights(name: str, url: str, target: Path) -> str:
    return f"weights of {name} not found and no network: put {url} at {target}, or pass it with --weights FILE"
