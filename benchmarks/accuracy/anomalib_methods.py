"""PatchCore and PaDiM of anomalib by its public API, on the backbone of the product: the same weights, the same files.

Both take any `torch.nn.Module` as backbone, so they get ours, at the strides of their layer1 to layer3. anomalib comes
with the extra `bench`; only this module imports it, and only inside functions.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from anomaly_cli.detector.backbones.backbone import EMBEDDED
from anomaly_cli.detector.backbones.build import build_backbone
from benchmarks.accuracy.methods import GAUSSIAN_CHANNELS, Judge, Judgement, Method, Settings, load_square

if TYPE_CHECKING:
    from torch import nn

LAYERS = ("network.stages.0", "network.stages.1", "network.stages.2")  # strides 4, 8, 16
NEIGHBOURS = 9  # default of anomalib's PatchCore


def available() -> bool:
    """Whether anomalib is installed."""
    return find_spec("anomalib") is not None


def load_library() -> None:
    """Import anomalib, which takes seconds that are none of a training's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what anomalib imports
        import_module("anomalib.models.image")


def _traceable() -> Any:  # anomalib asks for a name, and takes a network
    """Build our backbone as plain layers: anomalib traces it, which packed convolutions do not allow."""
    backbone = build_backbone(EMBEDDED)
    backbone._packed = None
    return backbone


def patchcore(normal: list[Path], settings: Settings) -> Judge:
    """Fit PatchCore on strides 8 and 16; the share of cells that it keeps is `coreset_ratio`."""
    from anomalib.models.image.patchcore.torch_model import PatchcoreModel

    torch.manual_seed(settings.seed)
    np.random.seed(settings.seed)  # noqa: NPY002, its coreset draws a projection by the generator that all share
    model = PatchcoreModel(LAYERS[1:], _traceable(), pre_trained=False, num_neighbors=NEIGHBOURS)
    _show(model, normal, settings.image_size)
    model.subsample_embedding(settings.coreset_ratio)
    return _judge(model, settings.image_size)


def padim(normal: list[Path], settings: Settings) -> Judge:
    """Fit PaDiM on strides 4, 8 and 16, with as many channels as it has by default for its smallest network."""
    from anomalib.models.image.padim.torch_model import PadimModel

    torch.manual_seed(settings.seed)
    model = PadimModel(_traceable(), list(LAYERS), pre_trained=False, n_features=GAUSSIAN_CHANNELS)
    _show(model, normal, settings.image_size)
    model.fit()
    return _judge(model, settings.image_size)


def _show(model: nn.Module, normal: list[Path], side: int) -> None:
    """Let a model in training mode see every normal image; it keeps their embeddings itself."""
    model.train()
    with torch.no_grad():
        for path in normal:
            model(load_square(path, side)[1])


def _judge(model: nn.Module, side: int) -> Judge:
    model.eval()

    @torch.no_grad()
    def judge(paths: list[Path]) -> Iterator[Judgement]:
        for path in paths:
            image, pixels = load_square(path, side)
            said = model(pixels)
            yield Judgement(float(said.pred_score), said.anomaly_map[0, 0].numpy(), image.height, image.width)

    return judge


ANOMALIB_METHODS: dict[str, Method] = {"anomalib_patchcore": patchcore, "anomalib_padim": padim}
