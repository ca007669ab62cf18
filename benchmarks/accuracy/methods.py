"""Detectors on equal terms: each learns from the same files and gives a score and a map for each file.

`ours` is the product's pipeline. The others are what it has to beat with the same backbone: the plain protocol of
nearest prototypes, a Gaussian a position (as PaDiM), and scikit-learn's detectors on pooled features. The library
anomalib has its own module, `benchmarks.accuracy.anomalib_methods`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter
from sklearn.ensemble import IsolationForest
from sklearn.neighbors import LocalOutlierFactor
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from anomaly_cli.config import DetectorConfig
from anomaly_cli.detector.backbones.backbone import EMBEDDED, Backbone
from anomaly_cli.detector.backbones.build import build_backbone
from anomaly_cli.detector.calibration import Calibration
from anomaly_cli.detector.coreset import select_coreset
from anomaly_cli.detector.features import scale_features, smooth_3x3
from anomaly_cli.detector.nearest_prototype import nearest_prototype
from anomaly_cli.detector.scales import FINEST_STEP, IMAGE_SCALE
from anomaly_cli.detector.whitening import Whitening
from anomaly_cli.errors import UnreadableImageError
from anomaly_cli.images.decode import LoadedImage, load_image
from anomaly_cli.scoring.measure import Scorer
from anomaly_cli.scoring.parallel import parallel_map, worker_count
from anomaly_cli.scoring.pixels import to_tensor
from anomaly_cli.statistics.pixel_metrics import Map
from anomaly_cli.training import train as training
from benchmarks.accuracy.quality import quiet

STRIDES = (4, 8, 16)  # of the plain protocol and of PaDiM
PROTOTYPES = 1_000  # a scale
CANDIDATE_CELLS = 20_000  # a scale, that prototypes are chosen among
UNIT_IMAGES = 50  # normal images that tell how large a distance is usual
UNIT_QUANTILE = 0.9  # of the distances of their cells is one
TOP_CELLS = 20  # of the finest grid make up the image score; 3 ranked worse on all sets (docs/backbone.md)
SMALL_SIDE = 128  # pixels, of the plain protocol as DESIGN measured it
GAUSSIAN_CHANNELS = 100  # drawn at random, as PaDiM does for its smallest network
GAUSSIAN_RIDGE = 0.01  # added to every covariance, likewise
BLUR_PX = 4.0  # of PaDiM's map


@dataclass(frozen=True)
class Settings:
    """What every method is told."""

    image_size: int = DetectorConfig().image_size
    seed: int = 0
    coreset_ratio: float = 0.004  # of the cells anomalib's PatchCore keeps: 1,000 of those of 250 images


class Judgement(NamedTuple):
    """What a method says of one image.

    Attributes:
        score: higher is more anomalous.
        anomaly_map: (h, w) of the whole picture, where the method has one.
        height: of the file, pixels.
        width: of the file, pixels.
    """

    score: float
    anomaly_map: Map | None
    height: int
    width: int


Judge = Callable[[list[Path]], Iterator[Judgement]]
Method = Callable[[list[Path], Settings], Judge]  # normal images → what judges others


def ours(normal: list[Path], settings: Settings) -> Judge:
    """Train the product by its own pipeline with its defaults."""
    return _trained(normal, settings, lambda calibration, deviations: float(calibration.scores(deviations)[0][0]))


def ours_averaged(normal: list[Path], settings: Settings) -> Judge:
    """Train the product, and rank by the mean of its components; training itself takes their soft maximum."""

    def score(calibration: Calibration, deviations: NDArray[np.float64]) -> float:
        standard = (np.log(deviations[0]) - calibration.location) / calibration.spread
        return float(standard @ calibration.weights)

    return _trained(normal, settings, score)


def _trained(
    normal: list[Path], settings: Settings, score_of: Callable[[Calibration, NDArray[np.float64]], float]
) -> Judge:
    config = DetectorConfig(image_size=settings.image_size, seed=settings.seed)
    with tempfile.TemporaryDirectory() as folder:
        model = training.train(normal, Path(folder) / "model.safetensors", config, progress=quiet).model
    scorer = Scorer(model, [next(model.detector.buffers()).device])

    def judge(paths: list[Path]) -> Iterator[Judgement]:
        for result in scorer.measure(paths):
            if isinstance(result, UnreadableImageError):
                raise result
            score = score_of(model.calibration, result.deviations[None])
            yield Judgement(score, result.anomaly_map, result.height, result.width)

    return judge


class _Scale(NamedTuple):
    """One stride of the plain protocol: whitening, its prototypes, and the distance that counts as one."""

    whitening: Whitening
    prototypes: Tensor
    unit: float

    def distances(self, features: Tensor) -> Tensor:
        """Measure each cell of (1, D, h, w) features: (h, w)."""
        _, D, h, w = features.shape
        cells = self.whitening(features[0].permute(1, 2, 0).reshape(-1, D))  # (h*w, D)
        return nearest_prototype(cells, self.prototypes)[0].view(h, w) / self.unit


def nearest_prototypes(normal: list[Path], settings: Settings, side: int | None = None) -> Judge:
    """Follow the plain protocol: whitened cells of each stride, coreset, nearest distance, strides summed.

    Nothing is cross-fitted and no image scale takes part. An image scores the mean of its top cells.

    Args:
        normal: images to learn from.
        settings: of all methods.
        side: pixels; images are resized to about its square instead of that of the settings.
    """
    backbone = build_backbone(EMBEDDED)
    embed = partial(_plain_cells, backbone, side or settings.image_size)
    scales = _learn_scales(normal, embed, settings.seed)

    def judge_one(path: Path) -> Judgement:
        image, features = embed(path)
        each = [scale.distances(features[name])[None, None] for name, scale in scales.items()]
        grid = each[0].shape[-2:]
        fused = torch.cat([F.interpolate(m, size=grid, mode="bilinear") for m in each]).sum(dim=0)[0]
        score = float(fused.flatten().topk(min(TOP_CELLS, fused.numel())).values.mean())
        return Judgement(score, fused.numpy(), image.height, image.width)

    return lambda paths: parallel_map(judge_one, paths, worker_count())


def _plain_cells(backbone: Backbone, side: int, path: Path) -> tuple[LoadedImage, dict[str, Tensor]]:
    """Compute the cells of one image at the strides of the protocol, one a stride: (1, D, h, w) by name.

    Those of stride 4 and 8 are averaged with their neighbours and all are brought to length one, as ours are.
    """
    image = load_image(path, side)
    with torch.inference_mode():
        maps = dict(zip(backbone.strides, backbone(to_tensor(image)), strict=True))
        return image, {str(stride): F.normalize(own_grid(maps[stride], stride), dim=1) for stride in STRIDES}


def own_grid(feature_map: Tensor, stride: int) -> Tensor:
    """Leave (N, D, h, w) cells of stride 4 on the grid of that stride, softened as those of stride 8."""
    return smooth_3x3(feature_map) if stride <= FINEST_STEP else feature_map


def _features(
    backbone: Backbone, side: int, names: tuple[str, ...], path: Path
) -> tuple[LoadedImage, dict[str, Tensor]]:
    """Compute the raw cells of one image: (1, D, h, w) by name."""
    image = load_image(path, side)
    with torch.inference_mode():
        return image, scale_features(backbone, to_tensor(image), names)


def _learn_scales(
    normal: list[Path], embed: Callable[[Path], tuple[LoadedImage, dict[str, Tensor]]], seed: int
) -> dict[str, _Scale]:
    per_image = max(1, CANDIDATE_CELLS // len(normal))

    def sample(numbered: tuple[int, Path]) -> dict[str, Tensor]:
        number, path = numbered
        generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
        cells = {name: m[0].flatten(1).T for name, m in embed(path)[1].items()}  # (h*w, D)
        return {name: c[torch.randperm(len(c), generator=generator)[:per_image]] for name, c in cells.items()}

    sampled = list(parallel_map(sample, enumerate(normal), worker_count()))
    scales = {}
    for name in sampled[0]:
        cells = torch.cat([each[name] for each in sampled])
        whitening = Whitening.fit(cells)
        embeddings = whitening(cells)
        chosen = select_coreset(embeddings, PROTOTYPES, torch.Generator().manual_seed(seed))
        scales[name] = _Scale(whitening, embeddings[chosen], 1.0)
    units: dict[str, list[Tensor]] = {name: [] for name in scales}
    for _, features in parallel_map(embed, normal[:: -(-len(normal) // UNIT_IMAGES)], worker_count()):
        for name, scale in scales.items():
            units[name].append(scale.distances(features[name]).flatten())
    quantiles = {name: float(np.quantile(torch.cat(each).numpy(), UNIT_QUANTILE)) for name, each in units.items()}
    return {name: scale._replace(unit=max(quantiles[name], 1e-6)) for name, scale in scales.items()}


def gaussian_cells(normal: list[Path], settings: Settings) -> Judge:
    """Fit a Gaussian at every position of the finest grid and measure the Mahalanobis distance, as PaDiM does.

    Images are squashed to squares, so that positions correspond; the image score is the maximum of the blurred map.
    """
    backbone = build_backbone(EMBEDDED)
    width = sum(m.shape[1] for m in _square_maps(backbone, normal[0], settings.image_size)[1])
    drawn = torch.randperm(width, generator=torch.Generator().manual_seed(settings.seed))[:GAUSSIAN_CHANNELS]

    def embed(path: Path) -> tuple[LoadedImage, Tensor]:
        """Join the strides on the finest grid: (h, w, d)."""
        image, maps = _square_maps(backbone, path, settings.image_size)
        grid = maps[0].shape[-2:]
        joined = torch.cat([F.interpolate(m, size=grid, mode="nearest") for m in maps], dim=1)
        return image, joined[0, drawn].permute(1, 2, 0)

    seen = [cells for _, cells in parallel_map(embed, normal, worker_count())]
    means, precisions = fit_gaussians(torch.stack([cells.flatten(0, 1) for cells in seen]))

    def judge_one(path: Path) -> Judgement:
        image, cells = embed(path)
        h, w, d = cells.shape
        distances = mahalanobis(cells.reshape(-1, d), means, precisions).view(h, w).numpy()
        blurred: Map = gaussian_filter(distances, BLUR_PX / STRIDES[0])
        return Judgement(float(blurred.max()), blurred, image.height, image.width)

    return lambda paths: parallel_map(judge_one, paths, worker_count())


def _square_maps(backbone: Backbone, path: Path, side: int) -> tuple[LoadedImage, list[Tensor]]:
    """Compute the maps of an image squashed to a square at the strides of the protocol."""
    image, pixels = load_square(path, side)
    with torch.inference_mode():
        maps = dict(zip(backbone.strides, backbone(pixels), strict=True))
    return image, [maps[stride] for stride in STRIDES]


def load_square(path: Path, side: int) -> tuple[LoadedImage, Tensor]:
    """Read an image and squash it: also (1, 3, side, side) float RGB in [0, 1]."""
    image = load_image(path, side)
    square = Image.fromarray(image.pixels).resize((side, side), Image.Resampling.BILINEAR)
    return image, to_tensor(LoadedImage(np.array(square), image.height, image.width))


def fit_gaussians(cells: Tensor) -> tuple[Tensor, Tensor]:
    """Fit one Gaussian a position to (N, P, d) cells of N ≥ 2 images: (P, d) means, (P, d, d) inverse covariances."""
    N, _, d = cells.shape
    means = cells.mean(dim=0)
    centred = (cells - means).permute(1, 2, 0)  # (P, d, N)
    covariances = centred @ centred.transpose(1, 2) / (N - 1) + GAUSSIAN_RIDGE * torch.eye(d)
    return means, torch.linalg.inv(covariances)


def mahalanobis(cells: Tensor, means: Tensor, precisions: Tensor) -> Tensor:
    """Measure (P, d) cells, each by the Gaussian of its position: (P,)."""
    offset = (cells - means)[:, None]  # (P, 1, d)
    return (offset @ precisions @ offset.transpose(1, 2)).flatten().clamp(min=0).sqrt()


class PooledDetector(Protocol):
    """A detector of scikit-learn; its `score_samples` is higher for normal rows."""

    def fit(self, features: ArrayLike, /) -> object:
        """Learn from (N, D) rows."""

    def score_samples(self, features: ArrayLike, /) -> NDArray[np.float64]:
        """Score (N, D) rows: (N,)."""


def pooled_detector(make: Callable[[int, int], Pipeline], normal: list[Path], settings: Settings) -> Judge:
    """Fit a detector of scikit-learn on the raw cell of the image scale of each image, the one that ours uses."""
    backbone = build_backbone(EMBEDDED)
    embed = partial(_features, backbone, settings.image_size, (IMAGE_SCALE,))

    def rows(paths: list[Path]) -> Iterator[tuple[LoadedImage, NDArray[np.float32]]]:
        for image, features in parallel_map(embed, paths, worker_count()):
            yield image, features[IMAGE_SCALE].flatten().numpy()

    detector: PooledDetector = make(len(normal), settings.seed)
    detector.fit(np.stack([row for _, row in rows(normal)]))

    def judge(paths: list[Path]) -> Iterator[Judgement]:
        for image, row in rows(paths):
            yield Judgement(-float(detector.score_samples(row[None])[0]), None, image.height, image.width)

    return judge


def isolation_forest(_normals: int, seed: int) -> Pipeline:
    """Isolation forest with its defaults."""
    return make_pipeline(StandardScaler(), IsolationForest(random_state=seed))


def local_outlier_factor(normals: int, _seed: int) -> Pipeline:
    """Local outlier factor against the training images, with its default of 20 neighbours where there are so many."""
    return make_pipeline(StandardScaler(), LocalOutlierFactor(n_neighbors=min(20, normals - 1), novelty=True))


METHODS: dict[str, Method] = {
    "ours": ours,
    "prototypes": nearest_prototypes,
    f"prototypes_{SMALL_SIDE}": partial(nearest_prototypes, side=SMALL_SIDE),
    "gaussian": gaussian_cells,
    "isolation_forest": partial(pooled_detector, isolation_forest),
    "lof": partial(pooled_detector, local_outlier_factor),
}
