"""Switch parts of the method off, one at a time: `python -m benchmarks.accuracy.ablation --data DIR/screw …`.

Every variant is the product's own pipeline with some names replaced from outside, so that the product carries no
switch that only a benchmark would use. All variants of a seed see the same images.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.cluster import MiniBatchKMeans
from torch import Tensor

from anomaly_cli.config import DetectorConfig
from anomaly_cli.detector import anomaly_detector, anomaly_distance, calibration, features
from anomaly_cli.detector.anomaly_detector import AnomalyDetector
from anomaly_cli.detector.backbones.backbone import EMBEDDED, SCRATCH
from anomaly_cli.detector.memory import PrototypeMemory
from anomaly_cli.detector.scales import COARSE_SCALE, FINEST_STEP, IMAGE_SCALE, POOLED_SCALES
from anomaly_cli.detector.whitening import SHRINKAGE, Whitening
from anomaly_cli.training import cross_fitting, fit, stage1, training_set
from benchmarks.accuracy import quality
from benchmarks.accuracy.datasets import AnomalySet, subsample
from benchmarks.accuracy.memory_contrast import Contrast, ContrastedStageOne
from benchmarks.accuracy.methods import own_grid
from benchmarks.jobs import Row, print_means, run_table, set_options

Floats = NDArray[np.float64]
Choose = Callable[[Tensor, int, torch.Generator], PrototypeMemory]
PRODUCT = "product"


@dataclass(frozen=True)
class Variant:
    """What differs from the product: what stands for names of its modules or classes."""

    part: str
    replaced: list[tuple[Any, str, Any]] = field(default_factory=list)
    prototypes: int = DetectorConfig.prototypes
    backbone: str = EMBEDDED


def only_components(active: Callable[[str], bool]) -> Callable[..., Floats]:
    """Let only some components enter the image score."""

    def weights(detector: AnomalyDetector, *_: object) -> Floats:
        return np.array([float(active(name)) for name in detector.deviation_names])

    return weights


def mean_memory(candidates: Tensor, _count: int, _generator: torch.Generator) -> PrototypeMemory:
    """Keep the mean of the (M, D) candidates only: with whitening, its distance is Mahalanobis'."""
    mean = candidates.mean(dim=0, keepdim=True)
    return PrototypeMemory(mean, (candidates - mean).square().sum(dim=1).argmin()[None].cpu())


def random_memory(candidates: Tensor, count: int, generator: torch.Generator) -> PrototypeMemory:
    """Keep `count` of the candidates, drawn at random."""
    chosen = torch.randperm(len(candidates), generator=generator)[:count]
    return PrototypeMemory(candidates[chosen.to(candidates.device)], chosen)


def k_means_memory(candidates: Tensor, count: int, generator: torch.Generator) -> PrototypeMemory:
    """Keep the `count` centres of k-means, each named after the candidate nearest to it."""
    if count >= len(candidates):
        return PrototypeMemory(candidates)
    seed = int(torch.randint(0, 2**31, (1,), generator=generator))
    fitted = MiniBatchKMeans(count, random_state=seed, n_init=1, batch_size=4096).fit(candidates.cpu().numpy())
    centres = torch.from_numpy(fitted.cluster_centers_).to(candidates)
    return PrototypeMemory(centres, PrototypeMemory(candidates).nearest(centres)[1].cpu())


def no_whitening(cells: Tensor) -> Whitening:
    """Centre (M, D) cells and divide them by one number."""
    D = cells.shape[1]
    return Whitening(cells.mean(0), torch.eye(D, device=cells.device) / cells.std(0).mean())


def diagonal_whitening(cells: Tensor) -> Whitening:
    """Give (M, D) cells unit variances only, correlations kept."""
    variance = cells.var(0, correction=0)
    return Whitening(cells.mean(0), torch.diag((variance + SHRINKAGE * variance.mean()).rsqrt()))


def whitened(
    local: Callable[[Tensor], Whitening] | None = None, pooled: Callable[[Tensor], Whitening] | None = None
) -> tuple[Any, str, Any]:
    """Whiten the cells of local scales, of pooled ones, or of both otherwise than the product."""
    fit = Whitening.fit

    def either(cells: Tensor, floor: float = SHRINKAGE) -> Whitening:
        other = local if floor == cross_fitting.LOCAL_FLOOR else pooled
        return fit(cells, floor) if other is None else other(cells)

    return (Whitening, "fit", either)


def mean_fused(standard: Floats, weights: Floats) -> Floats:
    """Fuse deviations by their weighted mean."""
    fused: Floats = standard @ weights / weights.sum()
    return fused


def max_fused(standard: Floats, weights: Floats) -> Floats:
    """Fuse deviations by the largest of those with a weight."""
    fused: Floats = standard[:, weights > 0].max(axis=1)
    return fused


def unchanged(cells: Tensor, dim: int) -> Tensor:
    """Keep the length of (N, D, h, w) cells."""
    del dim
    return cells


def neighbourhood_mean(feature_map: Tensor, stride: int) -> Tensor:
    """Average (N, D, h, w) cells over 3×3, as Roth et al. 2022 do, at any stride."""
    mean = torch.nn.functional.avg_pool2d(feature_map, 3, 1, 1, count_include_pad=False)
    return torch.nn.functional.avg_pool2d(mean, FINEST_STEP // stride) if stride < FINEST_STEP else mean


def cell_alone(feature_map: Tensor) -> Tensor:
    """Leave the (N, D, h, w) cells of stride 8 as they are."""
    return feature_map


def no_defects(*_: object) -> tuple[float, float]:
    """Weigh all scales equally, map and coarse cells as usual."""
    return anomaly_distance.DEFAULT_SENSITIVITIES


def never(_image_size: int) -> bool:
    """Make no small copy; coarse cells are then those of the image."""
    return False


def no_training(*_: object) -> None:
    """Leave the weights as they are."""


def contrasted(contrast: Contrast) -> Variant:
    """Let stage 1 from scratch contrast views as well."""
    return Variant(LEARNED, backbone=SCRATCH, replaced=[(stage1, "StageOne", partial(ContrastedStageOne, contrast))])


def no_outliers(*_: object) -> list[int]:
    """Let every normal image enter the memories."""
    return []


def _memory(choose: Choose) -> tuple[Any, str, Any]:
    return (PrototypeMemory, "choose", choose)


def _components(active: Callable[[str], bool]) -> tuple[Any, str, Any]:
    return (fit, "component_weights", only_components(active))


SCALES, MEMORY, WHITENING, LEARNED, FUSION, AGGREGATION = (
    "scales",
    "memory",
    "whitening",
    "learned parts",
    "fusion",
    "aggregation",
)
VARIANTS: dict[str, Variant] = {
    PRODUCT: Variant("–"),
    "stride 8 alone": Variant(SCALES, replaced=[(fit, "LOCAL_STRIDES", (8,)), _components("map".__eq__)]),
    "stride 16 alone": Variant(SCALES, replaced=[(fit, "LOCAL_STRIDES", (16,)), _components("map".__eq__)]),
    "stride 4 alone": Variant(SCALES, replaced=[(fit, "LOCAL_STRIDES", (4,)), _components("map".__eq__)]),
    "map of 8 and 16": Variant(SCALES, replaced=[(fit, "LOCAL_STRIDES", (8, 16))]),
    "stride 4 on its own grid": Variant(SCALES, replaced=[(features, "to_scale_grid", own_grid)]),
    "map alone, no pooled scale": Variant(SCALES, replaced=[_components("map".__eq__)]),
    "pooled scales, no map": Variant(SCALES, replaced=[_components(lambda name: name in POOLED_SCALES)]),
    "image scale alone": Variant(SCALES, replaced=[_components(IMAGE_SCALE.__eq__)]),
    "memory off (Mahalanobis)": Variant(MEMORY, replaced=[_memory(mean_memory)]),
    "memory and whitening off": Variant(MEMORY, replaced=[_memory(mean_memory), whitened(no_whitening, no_whitening)]),
    "random prototypes": Variant(MEMORY, replaced=[_memory(random_memory)]),
    "k-means prototypes": Variant(MEMORY, replaced=[_memory(k_means_memory)]),
    "1,000 prototypes of 20,000 cells": Variant(
        MEMORY, replaced=[(training_set, "CANDIDATE_CELLS", 20_000)], prototypes=1_000
    ),
    "outliers enter the memory": Variant(MEMORY, replaced=[(fit, "_find_outliers", no_outliers)]),
    "no whitening": Variant(WHITENING, replaced=[whitened(no_whitening, no_whitening)]),
    "local whitening as sharp as the pooled": Variant(WHITENING, replaced=[(cross_fitting, "LOCAL_FLOOR", SHRINKAGE)]),
    "diagonal whitening of cells": Variant(WHITENING, replaced=[whitened(local=diagonal_whitening)]),
    "diagonal whitening of the pooled scales": Variant(WHITENING, replaced=[whitened(pooled=diagonal_whitening)]),
    "cells keep their length": Variant(WHITENING, replaced=[(torch.nn.functional, "normalize", unchanged)]),
    "no synthetic defects (stage 2)": Variant(LEARNED, replaced=[(fit, "fit_scale_weights", no_defects)]),
    "every cell of stride 8 alone": Variant(SCALES, replaced=[(features, "smooth_3x3", cell_alone)]),
    "mean of 3×3 cells at all strides": Variant(SCALES, replaced=[(features, "to_scale_grid", neighbourhood_mean)]),
    "coarse cells alone": Variant(SCALES, replaced=[_components(COARSE_SCALE.__eq__)]),
    "no coarse cells": Variant(FUSION, replaced=[(anomaly_distance, "COARSE_WEIGHT", 0.0)]),
    "equal weights of map, coarse cells, pooled scales": Variant(
        FUSION, replaced=[_components(lambda name: name in ("map", COARSE_SCALE, *POOLED_SCALES))]
    ),
    "sharper maximum of the components": Variant(FUSION, replaced=[(calibration, "SOFTNESS", 1.0)]),
    "no small copy": Variant(SCALES, replaced=[(fit, "has_small_scale", never)]),
    "mean of the components": Variant(FUSION, replaced=[(calibration, "fuse_scores", mean_fused)]),
    "largest component": Variant(FUSION, replaced=[(calibration, "fuse_scores", max_fused)]),
    "largest cell": Variant(AGGREGATION, replaced=[(anomaly_detector, "TOP_CELL_FRACTION", 1e-6)]),
    "largest 1 % of the cells": Variant(AGGREGATION, replaced=[(anomaly_detector, "TOP_CELL_FRACTION", 0.01)]),
    "largest 5 % of the cells": Variant(AGGREGATION, replaced=[(anomaly_detector, "TOP_CELL_FRACTION", 0.05)]),
}

# From random weights, which only pictures of objects are worth: `--cifar FILE --variants` and these names.
FROM_SCRATCH: dict[str, Variant] = {
    "scratch": Variant(LEARNED, backbone=SCRATCH),
    "scratch, no stage 1": Variant(LEARNED, backbone=SCRATCH, replaced=[(stage1, "learn_backbone", no_training)]),
    "scratch, with memory contrast": contrasted(Contrast()),
    "scratch, with memory contrast of small weight": contrasted(Contrast(weight=0.1)),
    "scratch, with memory contrast, no variance term": contrasted(Contrast(variance_weight=0.0)),
    "scratch, with memory contrast of the coarsest scale": contrasted(Contrast(first=-1)),
    "scratch, with contrast, no memory": contrasted(Contrast(memory=False)),
    "scratch, turned copies not scored": Variant(
        LEARNED, backbone=SCRATCH, replaced=[(anomaly_distance, "TURNED_WEIGHT", 0.0)]
    ),
}


@dataclass(frozen=True)
class Job:
    """One variant on one draw of a set."""

    data: AnomalySet
    variant: str
    seed: int


def measure(job: Job) -> list[Row]:
    """Run the product's pipeline with the variant's names replaced: one row."""
    variant = (VARIANTS | FROM_SCRATCH)[job.variant]
    config = DetectorConfig(backbone=variant.backbone, seed=job.seed, prototypes=variant.prototypes)
    with ExitStack() as stack:
        for owner, name, substitute in variant.replaced:
            stack.enter_context(mock.patch.object(owner, name, substitute))
        row = quality.measure(quality.Job(job.data, config, None))
    return [{"part": variant.part, "variant": job.variant} | row]


def jobs_of(args: argparse.Namespace, sets: list[AnomalySet]) -> Iterator[Job]:
    """Make one job a set, seed and variant."""
    for data in sets:
        for seed in range(args.seeds):
            drawn = subsample(data, args.max_train, args.max_test, seed)
            for variant in args.variants:
                yield Job(drawn, variant, seed)


def main() -> None:
    """Measure and print the means."""
    options = set_options(__doc__)
    options.add_argument("--variants", nargs="+", choices=VARIANTS | FROM_SCRATCH, default=[*VARIANTS])
    options.set_defaults(seeds=1)
    args = options.parse_args()
    results = run_table(args, measure, jobs_of)
    print_means(results, ["part", "variant"])


if __name__ == "__main__":
    main()
