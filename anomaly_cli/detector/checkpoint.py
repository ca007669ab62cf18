"""Model files: one safetensors file with a JSON header, whole or not there, checked before any of it is used."""

from __future__ import annotations

import hashlib
import json
import platform
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from anomaly_cli.config import DetectorConfig, Effort, RoiKind
from anomaly_cli.detector.anomaly_detector import AnomalyDetector, ScaleModel
from anomaly_cli.detector.backbones.backbone import SCRATCH
from anomaly_cli.detector.backbones.build import empty_backbone
from anomaly_cli.detector.calibration import Calibration, ScoreScale
from anomaly_cli.detector.labelled_anomalies import LabelledAnomalyClassifier
from anomaly_cli.detector.memory import PrototypeMemory
from anomaly_cli.detector.prototype_patches import Patches, decode_patches, encode_patches
from anomaly_cli.detector.roi_mask import Mask, decode_mask, encode_mask
from anomaly_cli.detector.whitening import Whitening
from anomaly_cli.errors import AnomalyError, CheckpointError, MissingExtraError
from anomaly_cli.files import atomic_output

FORMAT = 9
FORMATS_BEFORE = (6, 7, 8)  # are read as well, but for `scratch`, whose scales or descriptors were others
KEY = "anomaly"  # of the JSON document among the file's metadata
KNOWN = "known_anomalies."  # prefix of the tensors of `LabelledAnomalyClassifier`
ROI = "region_of_interest"  # tensor of the mask, which is no part of the detector
PATCHES = "patches."  # prefix of the thumbnails of the prototypes, which are no part of the detector
DAMAGED = "is damaged or was edited; train the detector again"


@dataclass(frozen=True)
class Provenance:
    """Where a model comes from, for `anomaly info` and for whoever finds the file in a year.

    Attributes:
        images: readable normal images it was trained on.
        anomalies: labelled anomalous images it was trained on.
        unreadable: files of the normal folder that could not be read.
        suspects: outliers among the normal images, left out of every memory.
        training_set: SHA-256 over the contents of the normal images.
        versions: of Python, torch, torchvision, this package, and timm where the backbone is one of its networks.
        created: ISO 8601, UTC.
    """

    images: int
    anomalies: int
    unreadable: int
    suspects: int
    training_set: str
    versions: dict[str, str]
    created: str


@dataclass(frozen=True)
class Model:
    """Everything that a model file holds.

    Attributes:
        patches: thumbnails of where the prototypes come from; empty where they were not kept.
        roi: (H, W) mask, true where images are inspected; None where `config.roi` is not `RoiKind.ONE`.
    """

    detector: AnomalyDetector
    calibration: Calibration
    map_scale: ScoreScale
    config: DetectorConfig
    provenance: Provenance
    patches: Patches = field(default_factory=dict, repr=False)
    roi: Mask | None = field(default=None, repr=False)

    @property
    def label_reliability(self) -> float | None:
        """`LabelledAnomalyClassifier.reliability`; None without labelled anomalies."""
        classifier = self.detector.known_anomalies
        return None if classifier is None else classifier.reliability


def save_model(model: Model, path: Path) -> None:
    """Write the model file whole: an interrupted run leaves the old file.

    Raises:
        OutputError: the file cannot be written.
    """
    state = contiguous_state(model.detector)
    for name, pictures in model.patches.items():
        state[f"{PATCHES}{name}.content"], state[f"{PATCHES}{name}.ends"] = encode_patches(pictures)
    if model.roi is not None:
        state[ROI] = encode_mask(model.roi)
    header = {
        "format": FORMAT,
        "config": {name: value for name, value in asdict(model.config).items() if value is not None},
        "scales": list(model.detector.scale_names),
        "calibration": _calibration_to_json(model.calibration),
        "map_unit": asdict(model.map_scale),
        "provenance": asdict(model.provenance),
    }
    header["digest"] = _digest(header, state)
    content = save(state, {KEY: json.dumps(header)})
    with atomic_output(path) as file:
        file.write(content)


def contiguous_state(module: nn.Module) -> dict[str, Tensor]:
    """Copy the state of a module for safetensors: on the CPU, in row-major order."""
    # A clone, because a 1×1 convolution in channels-last order calls itself contiguous with strides that are not.
    return {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in module.state_dict().items()
    }


def library_versions(*further: str) -> dict[str, str]:
    """Name the versions that a model or a score may depend on."""
    names = ("anomaly-cli", "torch", "torchvision", "pillow", *further)
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def load_model(path: Path, device: torch.device | None = None) -> Model:
    """Read a model file.

    Raises:
        CheckpointError: it is missing, no model of ours, of another format, cut, edited or damaged.
        MissingExtraError: its backbone is one of timm, which is not installed.
    """
    return parse_model(read_content(path), path, device)


def parse_model(content: bytes, path: Path, device: torch.device | None = None) -> Model:
    """Make a model from the content of its file; the path is for errors only.

    Raises:
        CheckpointError: as `load_model`.
        MissingExtraError: likewise.
    """
    header, state = _parse(content, path)
    try:
        config = _config_from_json(header["config"])
        patches = _take_patches(header["scales"], state)
        roi = decode_mask(state.pop(ROI)) if config.roi is RoiKind.ONE else None
        detector = _assemble(config, header["scales"], state)
        calibration = _calibration_from_json(header["calibration"], len(detector.deviation_names))
        map_scale = _unit_from_json(header["map_unit"])
        provenance = _provenance_from_json(header["provenance"])
    except MissingExtraError as error:
        raise MissingExtraError(f"{path} cannot be read: {error}") from error
    except (KeyError, TypeError, ValueError, RuntimeError, AnomalyError) as error:
        raise CheckpointError(f"{path} {DAMAGED}") from error
    detector = detector.to(device or torch.device("cpu"))
    detector = detector.to(memory_format=torch.channels_last).eval()
    detector.backbone.prepare_for_inference()
    return Model(detector, calibration, map_scale, config, provenance, patches, roi)


def read_header(path: Path) -> dict[str, Any]:
    """Read the checked header of a model file, with the size of each memory and the scores of held-out normals.

    Raises:
        CheckpointError: as `load_model`.
    """
    header, state = _parse(read_content(path), path)
    try:
        sizes = {name: tuple(state[f"scales.stride_{name}.memory.prototypes"].shape) for name in header["scales"]}
        header["memory"] = {name: {"prototypes": K, "channels": D} for name, (K, D) in sizes.items()}
        header["thumbnails"] = sum(value.nbytes for key, value in state.items() if key.startswith(PATCHES))
        components = 1 + len(sizes) + (KNOWN + "looks" in state)
        header["normal_scores"] = _calibration_from_json(header["calibration"], components).normal_scores.tolist()
        header["config"] = dict(header["config"])
        _provenance_from_json(header["provenance"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} {DAMAGED}") from error
    return header


def _parse(content: bytes, path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    # In memory, not through safetensors' own file reader, which takes no path that is not UTF-8.
    try:
        state = load(content)
        length = int.from_bytes(content[:8], "little")
        text = json.loads(content[8 : 8 + length]).get("__metadata__", {}).get(KEY)
        if text is None:
            raise CheckpointError(f"{path} is not a model of `anomaly train`")
        header = json.loads(text)
    except (SafetensorError, KeyError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not a model file, or was cut short") from error
    if not _is_read(header):
        number = header.get("format") if isinstance(header, dict) else None
        raise CheckpointError(
            f"{path} has model format {number!s:.20}, this version reads {FORMAT}; train the detector again"
        )
    if header.pop("digest", None) != _digest(header, state):
        raise CheckpointError(f"{path} {DAMAGED}")
    return header, state


def _is_read(header: object) -> bool:
    """Whether this version reads the format that a header names."""
    if not isinstance(header, dict) or header.get("format") not in FORMATS_BEFORE:
        return isinstance(header, dict) and header.get("format") == FORMAT
    config = header.get("config")
    return isinstance(config, dict) and config.get("backbone") != SCRATCH


def fingerprint(path: Path) -> str:
    """Hash a model file: SHA-256 in hexadecimal.

    Raises:
        CheckpointError: it cannot be read.
    """
    return hashlib.sha256(read_content(path)).hexdigest()


def read_content(path: Path) -> bytes:
    """Read the bytes of a model file.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        if path.exists() and not path.is_file():
            raise CheckpointError(f"{path} is not a model file")
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CheckpointError(f"no model file at {path}: make one with `anomaly train NORMAL_DIR`") from error
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error


def _digest(header: dict[str, Any], state: dict[str, Tensor]) -> str:
    """Hash header and tensors, so that a flipped bit or an edited number is noticed."""
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name in sorted(state):
        value = state[name]
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _take_patches(names: list[str], state: dict[str, Tensor]) -> Patches:
    """Remove the thumbnails from the tensors of a file: those of all scales, or none."""
    if not any(key.startswith(PATCHES) for key in state):
        return {}
    sizes = {name: len(state[f"scales.stride_{name}.memory.prototypes"]) for name in names}
    return {
        name: decode_patches(state.pop(f"{PATCHES}{name}.content"), state.pop(f"{PATCHES}{name}.ends"), count)
        for name, count in sizes.items()
    }


def _assemble(config: DetectorConfig, names: list[str], state: dict[str, Tensor]) -> AnomalyDetector:
    scales = {}
    for name in names:
        prefix = f"scales.stride_{name}."
        matrix = state[prefix + "whitening.matrix"]
        whitening = Whitening(torch.zeros(len(matrix)), torch.zeros_like(matrix))
        scale = ScaleModel(whitening)
        prototypes = state[prefix + "memory.prototypes"]
        if not len(prototypes) or prototypes.shape[1:] != matrix.shape[1:]:
            raise ValueError(f"prototypes of shape {tuple(prototypes.shape)} at scale {name}")
        scale.memory = PrototypeMemory(torch.zeros_like(prototypes))
        scales[name] = scale
    classifier = None
    if KNOWN + "looks" in state:
        tensors = ("normal", "looks", "look_weights", "look_offset")
        classifier = LabelledAnomalyClassifier(*(torch.zeros_like(state[KNOWN + name]) for name in tensors))
    tiled = config.smallest_defect is not None
    detector = AnomalyDetector(empty_backbone(config.backbone), scales, classifier, tiled=tiled)
    if classifier is not None:
        widths = {classifier.normal.shape[1:], classifier.looks.shape[1:], classifier.look_weights.shape}
        if widths != {(detector.descriptor_width,)} or classifier.look_offset.shape:
            raise ValueError(f"descriptors of width {widths}, where the detector has {detector.descriptor_width}")
    detector.load_state_dict(state)
    return detector


def _config_from_json(values: dict[str, Any]) -> DetectorConfig:
    kinds: dict[str, Any] = {"effort": Effort(values["effort"])}
    if "roi" in values:
        kinds["roi"] = RoiKind(values["roi"])
    return DetectorConfig(**{**values, **kinds})


def _calibration_to_json(calibration: Calibration) -> dict[str, Any]:
    return {
        name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in asdict(calibration).items()
    }


def _calibration_from_json(values: dict[str, Any], length: int) -> Calibration:
    names = ("location", "spread", "weights", "normal_deviations")
    arrays = {name: np.array(values[name], np.float64) for name in names}
    units = tuple(_unit_from_json(unit) for unit in values["scale_units"])
    lengths = {len(each) for each in (arrays["location"], arrays["spread"], arrays["weights"], units)}
    spread, weights, normal = arrays["spread"], arrays["weights"], arrays["normal_deviations"]
    sound = (spread > 0).all() and (weights >= 0).all() and weights.any() and (normal > 0).all()
    finite = all(np.isfinite(each).all() for each in arrays.values())
    if (
        lengths != {length}
        or normal.ndim != 2
        or normal.shape[1] != length
        or not len(normal)
        or not sound
        or not finite
    ):
        raise ValueError("the calibration is not one of this detector")
    return Calibration(**arrays, scale_units=units, score_unit=_unit_from_json(values["score_unit"]))


def _unit_from_json(values: dict[str, Any]) -> ScoreScale:
    median, limit = float(values["median"]), float(values["limit"])
    if not -np.inf < median < limit < np.inf:
        raise ValueError(f"a unit from {median} to {limit}")
    return ScoreScale(median, limit)


def _provenance_from_json(values: dict[str, Any]) -> Provenance:
    provenance = Provenance(**values)
    for each in fields(provenance):
        kind = {"int": int, "str": str, "dict[str, str]": dict}.get(str(each.type), object)
        if not isinstance(getattr(provenance, each.name), kind):
            raise ValueError(f"{each.name} is no {each.type}")
    return provenance
