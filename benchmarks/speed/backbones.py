"""Time backbones beside `embedded` on this processor: `python -m benchmarks.speed.backbones [--backbones NAME …]`.

What is timed is the detector: network, whitening and the search in full memories, without decoding. Weights and
memories are random and take as long as trained ones. All measure images in turn, so that a busy machine slows all; a
ratio is that of one round, the printed one the median over the rounds.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from anomaly_cli.config import DetectorConfig
from anomaly_cli.detector.anomaly_detector import AnomalyDetector, ScaleModel
from anomaly_cli.detector.backbones.backbone import EMBEDDED, Backbone
from anomaly_cli.detector.backbones.build import build_backbone
from anomaly_cli.detector.backbones.timm_networks import timm_network, with_outputs
from anomaly_cli.detector.backbones.torchvision_networks import is_torchvision, torchvision_network, with_taps
from anomaly_cli.detector.features import scale_features
from anomaly_cli.detector.memory import PrototypeMemory
from anomaly_cli.detector.scales import COARSE_SCALE, IMAGE_SCALE, POOLED_SCALES, SMALL_SCALE, has_small_scale
from anomaly_cli.detector.whitening import Whitening
from anomaly_cli.training.fit import local_scales
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
NORMALS = 200  # images in the memories of pooled scales
CLASSIFIERS = {"fc", "classifier", "head", "heads"}  # parts of a network that are not counted


@dataclass(frozen=True)
class Contender:
    """A detector to be timed.

    Attributes:
        name: for `--backbone`.
        parameters: of the network without its classifier.
        licence: of the published weights, where timm says it.
        measure: measure all images once.
    """

    name: str
    parameters: int
    licence: str
    measure: Callable[[], object]


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


def random_backbone(name: str) -> Backbone:
    """Build a backbone with random weights; `embedded` with its own, laid out for speed."""
    if name == EMBEDDED:
        return build_backbone(EMBEDDED)
    wrap = with_taps if is_torchvision(name) else with_outputs
    return wrap(name, random_network(name)).to(memory_format=torch.channels_last).eval()


def prepare(name: str, image_size: int, images: int) -> Contender:
    """Make a detector whose memories are full of random prototypes, and images for it."""
    config = DetectorConfig(backbone=name, image_size=image_size)
    backbone = random_backbone(config.backbone)
    small = (SMALL_SCALE,) if has_small_scale(config.image_size) else ()
    generator = torch.Generator().manual_seed(0)
    batches = torch.rand(images, 1, 3, config.image_size, config.image_size, generator=generator)
    with torch.inference_mode():
        features = scale_features(backbone, batches[0], (*local_scales(backbone), IMAGE_SCALE, *small, COARSE_SCALE))
    scales = {}
    for scale, cells in features.items():
        D = cells.shape[1]
        scales[scale] = ScaleModel(Whitening(torch.zeros(D), torch.eye(D)))
        count = NORMALS if scale in POOLED_SCALES else config.prototypes
        scales[scale].memory = PrototypeMemory(torch.randn(count, D, generator=generator))
    detector = AnomalyDetector(backbone, scales)

    def measure() -> None:
        for batch in batches:
            detector(batch)

    measure()  # lays weights out, and fills caches
    parameters = sum(
        p.numel() for key, p in backbone.named_parameters() if not CLASSIFIERS.intersection(key.split("."))
    )
    licence = getattr(getattr(backbone.network, "network", None), "pretrained_cfg", {}).get("license")
    return Contender(name, parameters, licence or "", measure)


def compare(contenders: list[Contender], rounds: int) -> list[tuple[float, float, float, float]]:
    """Time all in turn: seconds (median), and median, smallest and largest ratio to the first, of each."""
    took = [[seconds(each.measure) for each in contenders] for _ in range(rounds)]
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
    parser.add_argument("--images", type=int, default=8, help="to measure in each round")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    args = parser.parse_args()
    contenders = [prepare(each, args.image_size, args.images) for each in (EMBEDDED, *args.backbones)]
    print(f"{torch.get_num_threads()} threads, {args.image_size} px, {args.rounds} rounds of {args.images} images")
    print("backbone                            parameters  ms an image  ratio (range)         licence")
    for each, (took, ratio, low, high) in zip(contenders, compare(contenders, args.rounds), strict=True):
        print(
            f"{each.name:34} {each.parameters / 1e6:8.1f} M  {1000 * took / args.images:11.0f}  "
            f"{ratio:5.2f} ({low:.2f} to {high:.2f})  {each.licence}"
        )


if __name__ == "__main__":
    main()
