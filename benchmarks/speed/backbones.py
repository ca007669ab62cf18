"""Time backbones beside `embedded` on this processor: `python -m benchmarks.speed.backbones [--backbones NAME …]`.

Each trains on the same textures with random weights, which take as long as trained ones, and scores others in turn, so
that a busy machine slows all. The ratio is that of one round, the printed one the median over the rounds.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch
from safetensors.torch import save_file
from torch import nn

from anomaly_cli.config import DetectorConfig
from anomaly_cli.detector.backbones.backbone import EMBEDDED, SCRATCH
from anomaly_cli.detector.backbones.timm_networks import timm_network
from anomaly_cli.detector.backbones.torchvision_networks import is_torchvision, torchvision_network
from anomaly_cli.scoring.measure import Scorer
from anomaly_cli.training import stage2
from anomaly_cli.training import train as training
from benchmarks.accuracy.quality import quiet
from benchmarks.accuracy.textures import write_textures
from benchmarks.speed.speed import ROUNDS, seconds

BACKBONES = (  # of torchvision, then of timm
    "resnet18",
    "wide_resnet50_2",
    "efficientnet_lite0",
    "resnet50.a1_in1k",
    "convnext_tiny.fb_in1k",
    "vit_small_patch14_dinov2.lvd142m",
    "vit_small_patch16_dinov3.lvd1689m",
)
SIDE = 512  # pixels, of the files
NORMALS = 10  # enough cells for full memories
DEFECTS = 4  # planted; the 128 of the product weigh components better, which is not timed


@dataclass(frozen=True)
class Contender:
    """A trained backbone.

    Attributes:
        name: for `--backbone`.
        parameters: of the network without its classifier; 0 where they are those of `embedded`.
        licence: of the published weights, where timm says it.
        model_bytes: of the model file.
        score: score all images once.
    """

    name: str
    parameters: int
    licence: str
    model_bytes: int
    score: Callable[[], object]


def random_network(name: str) -> nn.Module:
    """Build a network of torchvision or timm with seeded random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network: nn.Module = torchvision_network(name) if is_torchvision(name) else timm_network(name)
    return network


def write_random_weights(network: nn.Module, file: Path) -> Path:
    """Write the state of a network for `--weights`."""
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, file)
    return file


def prepare(name: str, image_size: int, paths: list[Path], folder: Path) -> Contender:
    """Train a backbone on the first `NORMALS` images; the others are to be scored."""
    config = DetectorConfig(backbone=name, image_size=image_size)
    model_path = folder / f"{name}.safetensors"
    weights, parameters, licence = None, 0, ""
    if config.backbone not in (EMBEDDED, SCRATCH):
        network = random_network(config.backbone)
        weights = write_random_weights(network, folder / f"{name}.weights.safetensors")
        parts = ("fc", "classifier", "head", "heads") if is_torchvision(config.backbone) else ()
        parameters = sum(p.numel() for key, p in network.named_parameters() if key.split(".")[0] not in parts)
        licence = str(getattr(network, "pretrained_cfg", {}).get("license") or "")
    with mock.patch.object(stage2, "SYNTHETIC_DEFECTS", DEFECTS):
        model = training.train(
            paths[:NORMALS], model_path, config, weights=weights, device="cpu", thumbnails=False, progress=quiet
        ).model
    scorer = Scorer(model, [torch.device("cpu")])

    def score() -> None:
        for _ in scorer.measure(paths[NORMALS:]):
            pass

    score()  # lays weights out, and fills caches
    return Contender(name, parameters, licence, model_path.stat().st_size, score)


def compare(contenders: list[Contender], rounds: int) -> list[tuple[float, float, float, float]]:
    """Time all in turn: seconds (median), and median, smallest and largest ratio to the first, of each."""
    took = [[seconds(each.score) for each in contenders] for _ in range(rounds)]
    figures = []
    for column in range(len(contenders)):
        ratios = [row[column] / row[0] for row in took]
        figures.append(
            (statistics.median(row[column] for row in took), statistics.median(ratios), min(ratios), max(ratios))
        )
    return figures


def main() -> None:
    """Measure and print a line each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbones", nargs="+", default=BACKBONES, help="to compare with `embedded`")
    parser.add_argument("--image-size", type=int, default=DetectorConfig().image_size)
    parser.add_argument("--images", type=int, default=16, help="to score in each round")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = write_textures(folder / "images", NORMALS + args.images, SIDE)
        contenders = [prepare(each, args.image_size, paths, folder) for each in (EMBEDDED, *args.backbones)]
        print(f"{torch.get_num_threads()} threads, {args.image_size} px, {args.rounds} rounds of {args.images} images")
        print("backbone                           parameters  model file  ms an image  ratio (range)     licence")
        for each, (took, ratio, low, high) in zip(contenders, compare(contenders, args.rounds), strict=True):
            size = f"{each.parameters / 1e6:8.1f} M" if each.parameters else " " * 10
            print(
                f"{each.name:34} {size}  {each.model_bytes / 1e6:7.0f} MB  {1000 * took / args.images:11.0f}  "
                f"{ratio:5.2f} ({low:.2f} to {high:.2f})  {each.licence}"
            )


if __name__ == "__main__":
    main()
