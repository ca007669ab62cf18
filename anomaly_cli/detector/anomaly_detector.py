"""The detector: backbone, a prototype memory for each scale, distance maps and deviations."""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_cli.detector.backbones.backbone import Backbone
from anomaly_cli.detector.features import cells_step, scale_features
from anomaly_cli.detector.inspected import fuse_inspected, has_ignored, inspected_cells, only_inspected
from anomaly_cli.detector.labelled_anomalies import LABELLED_NAME, LabelledAnomalyClassifier
from anomaly_cli.detector.memory import PrototypeMemory
from anomaly_cli.detector.scales import COARSE_SCALE, LEARNED_SCALE, WHOLE_SCALES, is_local
from anomaly_cli.detector.whitening import Whitening

TOP_CELL_FRACTION = 0.005  # of the cells of a map: its deviation is the mean of so many largest distances
TOP_TILED_CELLS = 5  # of a map from tiles, however large: what that fraction is at 256 pixels
TOP_COARSE_FRACTION = 0.05  # likewise of the coarse cells, each of which sees what many fine ones do
DESCRIPTOR_CELL_FRACTION = 0.02  # of the cells of a map, those of largest distance: a descriptor holds their mean
MIN_DEVIATION = 1e-4  # a copy of a training image has distance zero, and logarithms follow


class Detection(NamedTuple):
    """What the detector measures on a batch, before calibration.

    Attributes:
        anomaly_maps: (N, h, w) > 0, weighted mean of the distances of the local scales on the finest grid, where 1 is
            the mean of held-out normal images; NaN where cells are ignored.
        deviations: (N, E) > 0, one per name in `deviation_names`.
        peak_cells: (N, L, 2) for each of the L local scales the index (row-major) of the cell of largest distance,
            and of its nearest prototype; None where only distances are known.
        top_scales: (N, h, w) uint8, for each cell of the map the index of the local scale that adds most to it.
    """

    anomaly_maps: Tensor
    deviations: Tensor
    peak_cells: Tensor | None = None
    top_scales: Tensor | None = None


class ScaleModel(nn.Module):
    """One scale: whitening of its cells, its memory, and its weight in the fused map."""

    cell_mean: Tensor
    weight: Tensor

    def __init__(self, whitening: Whitening) -> None:
        """Start with an empty memory.

        Args:
            whitening: fitted on normal cells of D channels.
        """
        super().__init__()
        D = whitening.matrix.shape[1]
        self.whitening = whitening
        self.memory = PrototypeMemory(torch.zeros(1, D))
        self.register_buffer("weight", torch.ones(()))  # in the fused map
        self.register_buffer("cell_mean", torch.ones(()))  # mean distance of held-out normal cells

    def compare(self, cells: Tensor) -> tuple[Tensor, Tensor]:
        """Compare (M, D) backbone cells with the memory.

        Returns:
            (M,) distances √ΣΔ, where Δ is the squared difference from what the memory retrieves, and (M,) indices of
            the nearest prototypes.
        """
        return self.memory.nearest(self.whitening(cells))


class AnomalyDetector(nn.Module):
    """Feature maps to distances from normal: for each scale a map and one deviation."""

    def __init__(
        self,
        backbone: Backbone,
        scales: dict[str, ScaleModel],
        known_anomalies: LabelledAnomalyClassifier | None = None,
        *,
        tiled: bool = False,
    ) -> None:
        """Assemble a detector.

        Args:
            backbone: in eval mode.
            scales: by name: the local scales, finest first, then those that are not local.
            known_anomalies: fitted on labelled anomalies; None without them.
            tiled: whether the maps of local scales come from tiles of a large picture (`detector.tiles`).
        """
        super().__init__()
        self.backbone = backbone
        self.known_anomalies = known_anomalies
        self.tiled = tiled
        self.scale_names = tuple(scales)
        self.scales = nn.ModuleDict({f"stride_{name}": scale for name, scale in scales.items()})

    def scale(self, name: str) -> ScaleModel:
        """Return the model of one scale."""
        return cast(ScaleModel, self.scales[f"stride_{name}"])

    @property
    def local_names(self) -> tuple[str, ...]:
        """Names of the scales that the anomaly map is fused from."""
        return tuple(name for name in self.scale_names if is_local(name))

    @property
    def deviation_names(self) -> tuple[str, ...]:
        """Names of the columns of `Detection.deviations`: the fused map, every scale, the labelled anomalies."""
        return ("map", *self.scale_names, *(() if self.known_anomalies is None else (LABELLED_NAME,)))

    @property
    def column_names(self) -> tuple[str, ...]:
        """Names of the columns of the table beside the score: all deviations except the fused map."""
        return self.deviation_names[1:]

    def cell_step(self, name: str, height: int, width: int) -> int | None:
        """Return the distance of neighbouring cells of a scale in pixels of such an image; None for a pooled scale."""
        return cells_step(self.backbone, name, height, width)

    @torch.inference_mode()
    def distance_maps(self, images: Tensor, inspected: Tensor | None = None) -> list[Tensor]:
        """Measure every cell of every scale.

        Args:
            images: (N, 3, H, W) float RGB in [0, 1].
            inspected: (N, H, W) bool, their region of interest; None for all of it.

        Returns:
            For each scale one (N, h_s, w_s) map of distances ≥ 0, NaN where cells are ignored; that of a pooled scale
            has one cell.
        """
        features = scale_features(self.backbone, images, self.scale_names, inspected=inspected)
        return self.compare(features, inspected)[0]

    def compare(
        self, features: dict[str, Tensor], inspected: Tensor | None = None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Compute for each of these scales its map as in `distance_maps`, and the (N, h, w) nearest prototypes."""
        maps, prototypes = [], []
        for name in features:
            N, D, h, w = features[name].shape
            cells = features[name].permute(0, 2, 3, 1).reshape(-1, D)  # (N*h*w, D)
            distances, nearest = self.scale(name).compare(cells)
            distances = distances.view(N, h * w)
            prototypes.append(nearest.view(N, h, w))
            if inspected is not None and name not in WHOLE_SCALES:
                distances = distances.masked_fill(~inspected_cells(inspected, h, w).flatten(1), torch.nan)
            maps.append(distances.view(N, h, w))
        return maps, prototypes

    def _peak_cells(self, maps: list[Tensor], prototypes: list[Tensor]) -> Tensor:
        """Find `Detection.peak_cells`."""
        peaks = []
        for name, distances, nearest in zip(self.scale_names, maps, prototypes, strict=True):
            if is_local(name):
                found = distances.nan_to_num(nan=-1.0) if has_ignored([distances]) else distances
                cells = found.flatten(1).argmax(dim=1, keepdim=True)  # (N, 1)
                peaks.append(torch.cat([cells, nearest.flatten(1).gather(1, cells)], dim=1))
        return torch.stack(peaks, dim=1)

    @property
    def descriptor_width(self) -> int:
        """D of `descriptors`."""
        widths = [len(self.scale(name).whitening.mean) for name in self.local_names]
        learned = [len(self.scale(name).whitening.mean) for name in self.scale_names if name == LEARNED_SCALE]
        return 2 * widths[-1] + sum(widths) + sum(learned)

    @torch.inference_mode()
    def descriptors(self, images: Tensor, inspected: Tensor | None = None) -> Tensor:
        """Compute the descriptors that the labelled-anomaly classifier takes: (N, 3, H, W) to (N, D).

        Mean and standard deviation of the cells of the coarsest local scale describe the content, the mean of the
        cells of largest distance of each local scale what is anomalous; from scratch the learned embedding is a part
        too. `inspected` as in `distance_maps`.
        """
        features = scale_features(self.backbone, images, self.scale_names, inspected=inspected)
        return self._descriptors(features, self.compare(features, inspected)[0])

    def _descriptors(self, features: dict[str, Tensor], distance_maps: list[Tensor]) -> Tensor:
        if not has_ignored(distance_maps):
            return self._descriptors_of_all(features, distance_maps)
        described = []
        for i in range(len(distance_maps[0])):
            maps = [each[i : i + 1] for each in distance_maps]
            ignored = {name: each.isnan() for name, each in zip(self.scale_names, maps, strict=True)}
            kept = {name: only_inspected(features[name][i : i + 1], each) for name, each in ignored.items()}
            known = [only_inspected(each[:, None], each.isnan())[:, 0] for each in maps]
            described.append(self._descriptors_of_all(kept, known))
        return torch.cat(described)

    def _descriptors_of_all(self, features: dict[str, Tensor], distance_maps: list[Tensor]) -> Tensor:
        coarsest = features[self.local_names[-1]].flatten(2)
        mean = coarsest.mean(dim=2, keepdim=True)
        parts = [mean[..., 0], (coarsest - mean).square().mean(dim=2).sqrt()]
        for name, distances in zip(self.scale_names, distance_maps, strict=True):
            if is_local(name):
                _, D, h, w = features[name].shape
                count = _top_cell_count(h * w, DESCRIPTOR_CELL_FRACTION)
                top_cells = distances.flatten(1).topk(count, dim=1).indices  # (N, count)
                cells = features[name].flatten(2).gather(2, top_cells[:, None].expand(-1, D, -1))  # (N, D, count)
                parts.append(cells.mean(dim=2))
        if LEARNED_SCALE in features:
            parts.append(features[LEARNED_SCALE].flatten(1))
        return torch.cat(parts, dim=1)

    def combine(self, distance_maps: list[Tensor]) -> Detection:
        """Fuse the distance maps of a batch, one for each scale: anomaly maps, and deviations of map and scales."""
        by_name = dict(zip(self.scale_names, distance_maps, strict=True))
        finest = by_name[min(self.local_names, key=self.backbone.stride_of.__getitem__)]
        grid = finest.shape[-2:]
        relative = [by_name[name] / self.scale(name).cell_mean for name in self.local_names]
        weights = [self.scale(name).weight for name in self.local_names]
        ignored = has_ignored(distance_maps)
        known = [each.nan_to_num() for each in relative] if ignored else relative
        enlarged = [F.interpolate(each[:, None], size=grid, mode="bilinear")[:, 0] for each in known]
        if ignored:
            fused = fuse_inspected(relative, weights, finest)
        else:
            fused = torch.zeros((distance_maps[0].shape[0], *grid), device=distance_maps[0].device)
            for each, weight in zip(enlarged, weights, strict=True):
                fused += weight * each
            fused /= sum(weights)
        # What each scale adds over the mean of normal cells.
        excess = [weight * (each - 1) for each, weight in zip(enlarged, weights, strict=True)]
        top_scales = torch.stack(excess).argmax(dim=0).to(torch.uint8)
        local_top = TOP_TILED_CELLS if self.tiled else TOP_CELL_FRACTION
        columns = [_top_cells_mean(fused, local_top, ignored=ignored)]
        for name in self.scale_names:
            top = TOP_COARSE_FRACTION if name == COARSE_SCALE else local_top
            columns.append(_top_cells_mean(by_name[name], top, ignored=ignored))
        deviations = torch.stack(columns, dim=1).clamp(min=MIN_DEVIATION)
        return Detection(fused, deviations, top_scales=top_scales)

    @torch.inference_mode()
    def forward(self, images: Tensor, inspected: Tensor | None = None) -> Detection:
        """Measure (N, 3, H, W) float RGB images in [0, 1]; `inspected` as in `distance_maps`."""
        features = scale_features(self.backbone, images, self.scale_names, inspected=inspected)
        return self.detect(features, inspected)

    def detect(self, features: dict[str, Tensor], inspected: Tensor | None = None) -> Detection:
        """Measure images by their `scale_features`; `export` translates this function to a graph."""
        distance_maps, prototypes = self.compare(features, inspected)
        anomaly_maps, deviations, _, top_scales = self.combine(distance_maps)
        if self.known_anomalies is not None:
            known = self.known_anomalies(self._descriptors(features, distance_maps))
            deviations = torch.cat([deviations, known], dim=1)
        return Detection(anomaly_maps, deviations, self._peak_cells(distance_maps, prototypes), top_scales)


def _top_cells_mean(maps: Tensor, top: float, *, ignored: bool) -> Tensor:
    """Mean of the largest inspected cells, a fraction of them or so many, at least one: (N, h, w) to (N,)."""
    if ignored:
        known = [only_inspected(each[None, None], each[None].isnan())[:, 0] for each in maps]
        return torch.cat([_top_cells_mean(each, top, ignored=False) for each in known])
    cells = maps.flatten(1)
    count = min(int(top), cells.shape[1]) if top >= 1 else _top_cell_count(cells.shape[1], top)
    return cells.topk(count, dim=1).values.mean(dim=1)


def _top_cell_count(cells: int, fraction: float) -> int:
    """Round a fraction of the cells, with integers and `sym_max`: in an exported graph their number is symbolic."""
    one_of = round(1 / fraction)
    return cast(int, torch.sym_max(1, (cells + one_of // 2) // one_of))
