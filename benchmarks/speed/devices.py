"""Time `train` and `score` on a GPU beside the CPU: `python -m benchmarks.speed.devices [--devices cpu cuda]`.

All devices get the same files. Each trains a model of its own; then the model of the first one scores on every device.
Printed are seconds, after a first call that starts the device, and how far scores differ from those of the first
device. A network of torchvision or timm gets random weights: `--backbone dinov2 --image-size 448` is DINOv2's shape at
448 pixels.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr

from anomaly_cli.config import DetectorConfig
from anomaly_cli.detector.backbones.backbone import EMBEDDED, SCRATCH
from anomaly_cli.scoring import score as scoring
from anomaly_cli.training import train as training
from benchmarks.accuracy.quality import quiet
from benchmarks.accuracy.textures import add_image_options, images_of
from benchmarks.speed.backbones import random_network, write_random_weights
from benchmarks.speed.speed import seconds

START_IMAGES = 10  # that the first call on a device trains on


def train_s(normal: list[Path], model: Path, config: DetectorConfig, weights: Path | None, device: str) -> float:
    """Train and return seconds."""
    return seconds(lambda: training.train(normal, model, config, weights=weights, device=device, progress=quiet))


def score_s(incoming: list[Path], model: Path, device: str) -> tuple[float, NDArray[np.float64]]:
    """Score and return seconds and the scores in path order."""
    reports: list[scoring.ScoreReport] = []
    took = seconds(
        lambda: reports.append(scoring.score(incoming, model, device=device, with_quality=False, progress=quiet))
    )
    return took, np.array([row.score for row in sorted(reports[0].readable, key=lambda row: row.path)], float)


def report(
    normal: list[Path], incoming: list[Path], config: DetectorConfig, weights: Path | None, devices: list[str]
) -> None:
    """Measure every device and print a line each."""
    print(f"backbone {config.backbone}, {config.image_size} px, train on {len(normal)}, score {len(incoming)} images")
    with tempfile.TemporaryDirectory() as name:
        models = [Path(name) / f"{number}.safetensors" for number in range(len(devices))]
        reference: NDArray[np.float64] | None = None
        for device, model in zip(devices, models, strict=True):
            train_s(normal[:START_IMAGES], model, config, weights, device)
            trained = train_s(normal, model, config, weights, device)
            took, scores = score_s(incoming, models[0], device)
            reference = scores if reference is None else reference
            own = score_s(incoming, model, device)[1]
            print(
                f"{device_name(device):30} train {trained:7.1f} s  score {took:7.1f} s  "
                f"{len(incoming) / took:7.1f} images/s  {differences(reference, scores, own)}",
                flush=True,
            )


def differences(reference: NDArray[np.float64], same_model: NDArray[np.float64], own: NDArray[np.float64]) -> str:
    """Say how far scores are from the reference: of the same model, and of the model trained on this device."""
    farthest = (np.abs(same_model - reference) / reference).max()
    order = spearmanr(reference, own).statistic
    return f"same model: scores differ by {farthest:.2%} at most; own model: Spearman {order:.4f}"


def device_name(device: str) -> str:
    """Name a device for people."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


def main() -> None:
    """Parse the command line and measure."""
    defaults = DetectorConfig()
    parser = argparse.ArgumentParser(description=__doc__)
    add_image_options(parser, incoming=400)
    parser.add_argument("--devices", nargs="+", default=["cpu", "cuda"])
    parser.add_argument("--backbone", default=defaults.backbone)
    parser.add_argument("--image-size", type=int, default=defaults.image_size)
    args = parser.parse_args()
    if "cuda" in args.devices and not torch.cuda.is_available():
        parser.error("torch sees no GPU here; --devices cpu measures without one")
    config = DetectorConfig(backbone=args.backbone, image_size=args.image_size)
    with tempfile.TemporaryDirectory() as name:
        paths = images_of(parser, args, Path(name))
        weights = None
        if config.backbone not in (EMBEDDED, SCRATCH):
            weights = write_random_weights(random_network(config.backbone), Path(name) / "weights.safetensors")
        report(paths[: args.normal], paths[args.normal :], config, weights, args.devices)


if __name__ == "__main__":
    main()
