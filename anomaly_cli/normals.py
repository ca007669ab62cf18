"""Read the normal images once: which can be read, what they contain, and a sample of their cells a scale."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from anomaly_cli.augment import light_view
from anomaly_cli.backbone import Backbone
from anomaly_cli.config import MIN_NORMALS, DetectorConfig
from anomaly_cli.detector import scale_features
from anomaly_cli.errors import InputError, UnreadableImageError
from anomaly_cli.images import LoadedImage, load_image
from anomaly_cli.scoring import Progress, parallel_map, to_tensor

CANDIDATE_CELLS = 20_000  # a scale; prototypes are chosen among them


@dataclass(frozen=True)
class Run:
    """What every step of a training run needs."""

    config: DetectorConfig
    device: torch.device
    workers: int
    progress: Progress


@dataclass(frozen=True)
class NormalSet:
    """The readable images of the training set.

    Attributes:
        paths: readable files, in path order; an image's number is its place here.
        unreadable: path and reason of the others.
        digest: SHA-256 over the contents of the readable files, in hexadecimal.
    """

    paths: list[Path]
    unreadable: list[tuple[Path, str]]
    digest: str


@dataclass(frozen=True)
class Cells:
    """Sampled raw cells of one scale.

    Attributes:
        values: (M, V, D): the cell in V views of its image, the first being the image itself.
        sources: (M,) number of the image each was taken from.
    """

    values: Tensor
    sources: Tensor


def sample_cells(
    paths: list[Path], backbone: Backbone, names: tuple[str, ...], views: int, run: Run
) -> tuple[dict[str, Cells], NormalSet]:
    """Take the same number of random cells from every image, at most `CANDIDATE_CELLS` a scale in all.

    Raises:
        InputError: fewer than `MIN_NORMALS` images can be read.
    """
    per_image = max(1, CANDIDATE_CELLS // max(1, len(paths)))

    def sample(numbered: tuple[int, Path]) -> tuple[dict[str, Tensor], bytes] | UnreadableImageError:
        number, path = numbered
        try:
            image = load_image(path, run.config.image_size)
            digest = hashlib.sha256(path.read_bytes()).digest()
        except UnreadableImageError as error:
            return error
        except OSError as error:
            return UnreadableImageError(error.strerror or "cannot be read")
        seed = (run.config.seed * 1_000_003 + number) % 2**63
        with torch.inference_mode():
            features = scale_features(backbone, _views(image, views, seed).to(run.device), names)
        return {name: _random_cells(features[name], per_image, seed) for name in names}, digest

    sampled: dict[str, list[Tensor]] = {name: [] for name in names}
    readable: list[Path] = []
    unreadable: list[tuple[Path, str]] = []
    content = hashlib.sha256()
    results = parallel_map(sample, enumerate(paths), run.workers)
    for done, (path, result) in enumerate(zip(paths, results, strict=True), start=1):
        if isinstance(result, UnreadableImageError):
            unreadable.append((path, result.reason))
        else:
            readable.append(path)
            content.update(result[1])
            for name, values in result[0].items():
                sampled[name].append(values)
        run.progress("reading normal images", done, len(paths))
    if len(readable) < MIN_NORMALS:
        raise InputError(_too_few(readable, unreadable))
    cells = {name: Cells(torch.cat(each), _numbers([len(values) for values in each])) for name, each in sampled.items()}
    return cells, NormalSet(readable, unreadable, content.hexdigest())


def _too_few(readable: list[Path], unreadable: list[tuple[Path, str]]) -> str:
    also = f" ({len(unreadable)} cannot be read, first {unreadable[0][0]}: {unreadable[0][1]})" if unreadable else ""
    return (
        f"{len(readable)} readable normal images{also}, at least {MIN_NORMALS} are needed: "
        "each is measured against the others to learn how much normal images vary"
    )


def _views(image: LoadedImage, count: int, seed: int) -> Tensor:
    """The image and count − 1 differently lit views of it: (count, 3, h, w)."""
    draw = np.random.default_rng(seed)
    views = [image.pixels, *(light_view(image.pixels, draw) for _ in range(count - 1))]
    return torch.cat([to_tensor(LoadedImage(pixels, image.height, image.width)) for pixels in views])


def _random_cells(feature_maps: Tensor, count: int, seed: int) -> Tensor:
    """Choose the same cells of all views, (V, D, h, w), of one image: (min(count, h*w), V, D)."""
    cells = feature_maps.flatten(2).permute(2, 0, 1)  # (h*w, V, D)
    chosen = torch.randperm(len(cells), generator=torch.Generator().manual_seed(seed))[:count]
    return cells[chosen.to(cells.device)].cpu()


def _numbers(counts: list[int]) -> Tensor:
    return torch.repeat_interleave(torch.tensor(counts))
