"""Compare rules that join the scales into one image score: `python -m benchmarks.fusion --data DIR/screw …`.

Every rule sees the same distance maps: of held-out normal images (cross-fitted, as the product does) and of the test
images. Figures are image AUROC in percent; the product's own rule is marked.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import Tensor

from anomaly_cli.backbone import EMBEDDED, build_backbone
from anomaly_cli.config import DetectorConfig
from anomaly_cli.detector import HOT_SHARE, AnomalyDetector
from anomaly_cli.held_out import HeldOut, measure_held_out
from anomaly_cli.normals import Run, sample_cells
from anomaly_cli.scales import IMAGE_SCALE
from anomaly_cli.scoring import worker_count
from anomaly_cli.training import deal_folds, learn_scales
from benchmarks.datasets import AnomalySet, read_mvtec, subsample
from benchmarks.quality import quiet

SCALES = ("4", "8", "16", "32", IMAGE_SCALE)
SHARES = (0.005, 0.02, 0.05)  # of the cells that count as hottest
PRODUCT = ("map 8+16", IMAGE_SCALE), HOT_SHARE
RULES: tuple[tuple[str, ...], ...] = (
    ("4",),
    ("8",),
    ("16",),
    ("32",),
    (IMAGE_SCALE,),
    ("map 8+16",),
    ("map 4+8+16",),
    ("map 8+16+32",),
    ("map 8+16", IMAGE_SCALE),
    ("map 4+8+16", IMAGE_SCALE),
    ("map 8+16+32", IMAGE_SCALE),
    ("8", "16", "32", IMAGE_SCALE),
    ("map 8+16+32", "8", "16", "32", IMAGE_SCALE),
    ("map 8+16", "16", IMAGE_SCALE, IMAGE_SCALE),
)


def distance_maps(data: AnomalySet, backbone_name: str, weights: Path | None) -> tuple[dict[str, list[Tensor]], int]:
    """Measure held-out normal images, then test images: one map an image and scale, and the number of normal ones."""
    backbone = build_backbone(backbone_name, weights)
    run = Run(DetectorConfig(), torch.device("cpu"), worker_count(), quiet)
    names = tuple(name for name in SCALES if name == IMAGE_SCALE or int(name) in backbone.strides)
    cells, normals = sample_cells(data.normal, backbone, names, 1, run)
    folds = deal_folds(len(normals.paths), run.config.seed)
    detectors = [AnomalyDetector(backbone, scales).eval() for scales in learn_scales(cells, folds, run)]
    items = [HeldOut(fold, path) for fold, path in zip(folds.tolist(), normals.paths, strict=True)]
    items += [HeldOut(-1, image.path) for image in data.test]  # fold -1: the detector that learned from all
    measured = measure_held_out(detectors, items, run)
    return {name: [maps[i][0] for maps in measured] for i, name in enumerate(names)}, len(normals.paths)


def _standard(values: NDArray[np.float64], normals: int) -> NDArray[np.float64]:
    standard: NDArray[np.float64] = (values - values[:normals].mean()) / values[:normals].std()
    return standard


def _hottest(maps: list[Tensor], share: float) -> NDArray[np.float64]:
    counts = [max(1, round(share * m.numel())) for m in maps]
    return np.array([float(m.flatten().topk(k).values.mean()) for m, k in zip(maps, counts, strict=True)])


def _fused(maps: dict[str, list[Tensor]], names: list[str], normals: int) -> list[Tensor]:
    units = {}
    for name in names:
        cells = torch.cat([m.flatten() for m in maps[name][:normals]])
        units[name] = cells.mean(), cells.std()
    out = []
    for i in range(len(maps[names[0]])):
        grid = maps[names[0]][i].shape
        each = [
            F.interpolate(((maps[n][i] - units[n][0]) / units[n][1])[None, None], size=grid, mode="bilinear")[0, 0]
            for n in names
        ]
        out.append(torch.stack(each).mean(dim=0))
    return out


def evaluate(maps: dict[str, list[Tensor]], normals: int, anomalous: NDArray[np.bool_]) -> dict[str, float]:
    """Image AUROC of every rule and share whose scales there are."""
    figures = {}
    for share in SHARES:
        evidence: dict[str, NDArray[np.float64]] = {}
        for part in sorted({part for rule in RULES for part in rule}):
            names = part.removeprefix("map ").split("+")
            if any(name not in maps for name in names):
                continue
            chosen = _fused(maps, names, normals) if part.startswith("map ") else maps[part]
            hot = _hottest(chosen, share)
            positive = np.log1p(np.exp(hot)) if part.startswith("map ") else hot.clip(1e-4)
            evidence[part] = _standard(np.log(positive), normals)
        for rule in RULES:
            if all(part in evidence for part in rule):
                score = np.sum([evidence[part] for part in rule], axis=0)[normals:]
                mark = " *" if (rule, share) == PRODUCT else ""
                figures[f"{', '.join(rule)}; {share:.1%}{mark}"] = 100 * float(roc_auc_score(anomalous, score))
    return figures


def main() -> None:
    """Measure every set and print one table, best mean first; * marks the product's rule."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="sets in MVTec layout")
    parser.add_argument("--backbone", default=EMBEDDED)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--max-train", type=int, default=200)
    parser.add_argument("--max-test", type=int, default=120, help="of the normal and of the anomalous images")
    args = parser.parse_args()
    columns = {}
    for folder in args.data:
        data = subsample(read_mvtec(folder), args.max_train, args.max_test, seed=0)
        maps, normals = distance_maps(data, args.backbone, args.weights)
        columns[data.name] = evaluate(maps, normals, np.array([image.anomalous for image in data.test]))
    table = pd.DataFrame(columns)
    table["mean"] = table.mean(axis=1)
    print(table.sort_values("mean", ascending=False).round(1).to_string())


if __name__ == "__main__":
    main()
