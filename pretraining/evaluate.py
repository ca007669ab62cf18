"""Compare frozen networks by a plain protocol: `python -m pretraining.evaluate --data BENCH_DIR --backbone embedded`.

Local anomalies: maps at strides 4, 8 and 16, averaged over 3×3 cells, whitened by the normal images, distance to the
nearest of 1,000 prototypes, each scale in units of its own 90 % quantile, summed on the finest grid; an image scores
the mean of its most anomalous cells. Objects: CIFAR-10, one class against the rest, by globally pooled maps. Nothing is
learned and nothing is calibrated, so that only the network makes the difference; figures are image AUROC in percent.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from sklearn.metrics import roc_auc_score
from torch import Tensor

from anomaly_cli.detector.backbones.backbone import EMBEDDED, Backbone
from anomaly_cli.detector.backbones.build import build_backbone
from anomaly_cli.detector.backbones.compact_resnet import STRIDES, CompactResNet
from anomaly_cli.detector.coreset import select_coreset
from anomaly_cli.detector.memory import PrototypeMemory
from anomaly_cli.detector.whitening import Whitening
from benchmarks.accuracy.datasets import AnomalySet, PackedImages, read_mvtec, read_packed, subsample
from pretraining.teacher import RecordedTeacher

LOCAL_STRIDES = ("4", "8", "16")
IMAGE_SIZE = 128  # pixels; images are squashed to squares of this side
LARGE_SETS = {"screw": 192, "transistor": 192}  # whose anomalies vanish at 128 pixels
MAX_NORMAL, MAX_TEST = 250, 150  # images; the latter of the normal and of the anomalous test images
PROTOTYPES = 1_000  # a scale
CANDIDATE_CELLS = 20_000  # that prototypes are chosen among
WHITENING_CELLS = 50_000
SCALE_QUANTILE = 0.9  # of the distances of normal cells is one
TOP_CELLS = (3, 20)  # on the finest grid
CIFAR_SIZE = 64  # pixels; pictures are enlarged from 32
CIFAR_NORMALS = 500  # a class
NEIGHBOURS = 3
BATCH = 32  # images; in one pass a network sees no more
POOLED_BATCH = 250

Network = Callable[[Tensor], dict[str, Tensor]]  # (N, 3, H, W) RGB in [0, 1] → map by name, finest first
Figures = dict[str, float]


@dataclass(frozen=True)
class Limits:
    """How many images are used; smaller ones are for trying the command out."""

    normal: int = MAX_NORMAL
    test: int = MAX_TEST
    cifar_normal: int = CIFAR_NORMALS
    cifar_test: int = 10**9  # a class


def network_of(backbone: Backbone) -> Network:
    """Name the maps of a backbone by their strides."""
    names = [str(stride) for stride in backbone.strides]
    return lambda images: dict(zip(names, backbone(images), strict=True))


def backbone_of(name: str, weights: Path | None) -> Backbone:
    """Build a backbone; weights for `embedded` are a file of `pretraining.train` that is not in the package yet."""
    if name != EMBEDDED or weights is None:
        return build_backbone(name, weights)
    network = CompactResNet()
    network.load_state_dict({key: value.float() for key, value in load_file(weights).items()}, strict=False)
    backbone = Backbone(name, network.eval().fuse(), STRIDES)
    return backbone.to(memory_format=torch.channels_last).eval()


def reference_of(path: Path) -> Network:
    """Replay a recorded network; its last map is named `embedding`."""
    recorded = RecordedTeacher(path).to(memory_format=torch.channels_last).eval()
    names = [*map(str, STRIDES), "embedding"]
    return lambda images: dict(zip(names, recorded(images), strict=True))


def read_squares(paths: list[Path], side: int) -> Tensor:
    """Read images squashed to squares: (N, side, side, 3) uint8 RGB."""
    pixels = np.empty((len(paths), side, side, 3), np.uint8)
    for row, path in zip(pixels, paths, strict=True):
        with Image.open(path) as image:
            row[:] = np.asarray(image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC))
    return torch.from_numpy(pixels)


@torch.inference_mode()
def batches(network: Network, pixels: Tensor, size: int) -> Iterator[dict[str, Tensor]]:
    """Run a network over (N, H, W, 3) uint8 images, `size` at a time."""
    for chunk in pixels.split(size):
        yield network(chunk.permute(0, 3, 1, 2).float() / 255)


def local_maps(network: Network, pixels: Tensor) -> dict[str, Tensor]:
    """Compute the averaged maps at the strides that the protocol uses: (N, h, w, D) by stride."""
    parts: dict[str, list[Tensor]] = {}
    for maps in batches(network, pixels, BATCH):
        for stride in LOCAL_STRIDES:
            if stride in maps:
                averaged = F.avg_pool2d(maps[stride], 3, 1, 1, count_include_pad=False)
                parts.setdefault(stride, []).append(averaged.permute(0, 2, 3, 1))
    return {stride: torch.cat(each) for stride, each in parts.items()}


def distance_maps(cells: Tensor, normals: int) -> Tensor:
    """Measure every cell against the cells of the first `normals` images.

    Args:
        cells: (N, h, w, D).
        normals: how many of the images are normal.

    Returns:
        (N, h, w); the unit is a quantile of the normal images.
    """
    N, h, w, D = cells.shape
    generator = torch.Generator().manual_seed(0)
    flat = cells.reshape(-1, D)  # (N*h*w, D)
    drawn = flat[torch.randperm(normals * h * w, generator=generator)[:WHITENING_CELLS]]
    whitening = Whitening.fit(drawn)
    candidates = whitening(drawn[:CANDIDATE_CELLS])
    memory = PrototypeMemory(candidates[select_coreset(candidates, PROTOTYPES, generator)])
    distances = torch.cat([memory.nearest(whitening(image))[0] for image in flat.split(h * w)]).view(N, h, w)
    normal = distances[:normals].flatten().double().numpy()
    return distances / max(float(np.quantile(normal, SCALE_QUANTILE)), 1e-12)


def top_cells_mean(maps: Tensor, count: int) -> NDArray[np.float32]:
    """Mean of the `count` most anomalous cells of each (N, h, w) map: (N,)."""
    values: NDArray[np.float32] = maps.flatten(1).topk(count, dim=1).values.mean(dim=1).numpy()
    return values


def local_figures(network: Network, data: AnomalySet) -> Figures:
    """Image AUROC of the fused map for each number of top cells, and of each stride alone with the fewest."""
    side = LARGE_SETS.get(data.name, IMAGE_SIZE)
    normals = len(data.normal)
    labels = [image.anomalous for image in data.test]
    maps = local_maps(network, read_squares(data.normal + [image.path for image in data.test], side))
    distances = {stride: distance_maps(cells, normals) for stride, cells in maps.items()}
    grid = next(iter(distances.values())).shape[1:]
    fused = torch.zeros(len(labels) + normals, *grid)
    for each in distances.values():
        fused += F.interpolate(each[:, None], grid, mode="bilinear", align_corners=False)[:, 0]

    def auroc(scored: Tensor, count: int) -> float:
        return 100 * float(roc_auc_score(labels, top_cells_mean(scored[normals:], count)))

    figures = {f"top {count}": auroc(fused, count) for count in TOP_CELLS}
    return figures | {f"stride {stride}": auroc(each, TOP_CELLS[0]) for stride, each in distances.items()}


def pooled_maps(network: Network, packed: PackedImages, indices: NDArray[np.int64]) -> dict[str, Tensor]:
    """Pool every map over the whole picture: (len(indices), D) by name."""
    parts: dict[str, list[Tensor]] = {}
    for chunk in np.array_split(indices, -(-len(indices) // POOLED_BATCH)):
        pixels = torch.from_numpy(packed.decode(chunk, CIFAR_SIZE))
        for maps in batches(network, pixels, POOLED_BATCH):
            for name, each in maps.items():
                parts.setdefault(name, []).append(each.mean(dim=(2, 3)))
    return {name: torch.cat(each) for name, each in parts.items()}


def neighbour_distance(queries: Tensor, normals: Tensor) -> Tensor:
    """Mean distance of (M, D) queries to their nearest (K, D) normals: (M,)."""
    nearest = [torch.cdist(chunk, normals).topk(NEIGHBOURS, dim=1, largest=False) for chunk in queries.split(1000)]
    return torch.cat([each.values.mean(dim=1) for each in nearest])


def object_figures(network: Network, packed: PackedImages, limits: Limits) -> Figures:
    """Image AUROC of one class against the rest, mean over the classes, by map."""
    chosen = [
        packed.choose(test=test, per_class=count)
        for test, count in ((False, limits.cifar_normal), (True, limits.cifar_test))
    ]
    normal_labels, test_labels = (packed.labels[indices] for indices in chosen)
    normal, test = (pooled_maps(network, packed, indices) for indices in chosen)
    figures = {}
    for name in normal:
        aurocs = []
        for label in range(len(packed.classes)):
            own = normal[name][torch.from_numpy(normal_labels == label)]
            whitening = Whitening.fit(own)
            scores = neighbour_distance(whitening(test[name]), whitening(own))
            aurocs.append(100 * float(roc_auc_score(test_labels != label, scores.numpy())))
        figures[name] = float(np.mean(aurocs))
    return figures


def compare(networks: dict[str, Network], sets: list[AnomalySet], packed: PackedImages | None, limits: Limits) -> None:
    """Measure every network on everything and print each result at once."""
    for title, network in networks.items():
        rows: dict[str, Figures] = {}
        for data in sets:
            start = time.perf_counter()
            rows[data.name] = local_figures(network, subsample(data, limits.normal, limits.test, seed=0))
            print(f"{title}: {data.name} took {time.perf_counter() - start:.0f} s", flush=True)
        if rows:
            table = pd.DataFrame(rows).T
            table.loc["mean"] = table.mean()
            print(f"\n{title}, image AUROC in percent\n{table.round(1).to_string()}\n", flush=True)
        if packed is not None:
            figures = pd.DataFrame([object_figures(network, packed, limits)], index=["cifar10"])
            print(f"{title}, one class against the rest, image AUROC in percent\n{figures.round(1).to_string()}\n")


def main() -> None:
    """Parse the command line and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--data", type=Path, required=True, help="folder of sets in MVTec layout and of cifar10.npz/.bin"
    )
    parser.add_argument("--sets", nargs="*", help="names of the sets; all by default, none to leave them out")
    parser.add_argument("--no-cifar", action="store_true", help="leave CIFAR-10 out")
    parser.add_argument("--backbone", help="embedded, scratch or a torchvision name")
    parser.add_argument("--weights", type=Path, help="of the backbone, also of one that `pretraining.train` wrote")
    parser.add_argument("--reference", type=Path, help="safetensors file with recorded operations")
    parser.add_argument("--max-normal", type=int, default=MAX_NORMAL)
    parser.add_argument("--max-test", type=int, default=MAX_TEST)
    parser.add_argument("--cifar-test", type=int, default=Limits.cifar_test, help="test pictures a class")
    args = parser.parse_args()
    networks: dict[str, Network] = {}
    if args.backbone is not None:
        networks[args.backbone] = network_of(backbone_of(args.backbone, args.weights))
    if args.reference is not None:
        networks[args.reference.stem] = reference_of(args.reference)
    if not networks:
        parser.error("name a --backbone, a --reference or both")
    names = args.sets
    if names is None:
        names = sorted(path.parents[1].name for path in args.data.glob("*/train/good"))
    packed = args.data / "cifar10"
    use_cifar = not args.no_cifar and packed.with_name("cifar10.npz").is_file()
    limits = Limits(normal=args.max_normal, test=args.max_test, cifar_test=args.cifar_test)
    sets = [read_mvtec(args.data / name) for name in names]
    compare(networks, sets, read_packed(packed) if use_cifar else None, limits)


if __name__ == "__main__":
    main()
