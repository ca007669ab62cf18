"""Turned and mirrored copies of few normal images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from anomaly_cli.config import DetectorConfig
from anomaly_cli.detector.backbones.backbone import Backbone
from anomaly_cli.detector.backbones.build import build_backbone
from anomaly_cli.detector.features import scale_features
from anomaly_cli.detector.scales import COARSE_SCALE, IMAGE_SCALE
from anomaly_cli.images.decode import load_image
from anomaly_cli.scoring.pixels import to_tensor
from anomaly_cli.training import fit, views
from anomaly_cli.training.cell_samples import Cells
from anomaly_cli.training.run import TrainingContext
from anomaly_cli.training.training_set import sample_cells
from anomaly_cli.training.views import VIEWS, View, add_views, may_turn

CONFIG = DetectorConfig(image_size=128, prototypes=60)
NAMES = ("8", IMAGE_SCALE, COARSE_SCALE)


def rod(rng: np.random.Generator, angle: float) -> NDArray[np.uint8]:
    """Draw a bright rod with a thick end on dark ground, turned by an angle."""
    y, x = np.mgrid[-1:1:128j, -1:1:128j]
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    shape = (abs(along) < 0.7) & (abs(across) < 0.1 + 0.15 * (along > 0.4))
    picture = 60 + 120 * shape[..., None] + rng.normal(0, 6, (128, 128, 3))
    pixels: NDArray[np.uint8] = picture.clip(0, 255).astype(np.uint8)
    return pixels


def write(folder: Path, angles: NDArray[np.float64]) -> list[Path]:
    folder.mkdir()
    rng = np.random.default_rng(3)
    paths = [folder / f"{i:02}.png" for i in range(len(angles))]
    for path, angle in zip(paths, angles, strict=True):
        Image.fromarray(rod(rng, float(angle))).save(path)
    return paths


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return build_backbone("embedded", None, 0)


def context() -> TrainingContext:
    return TrainingContext(CONFIG, torch.device("cpu"), 1, lambda *_: None)


def test_the_views_are_the_other_seven_symmetries_of_a_square() -> None:
    picture = torch.arange(12.0).view(1, 3, 4)
    turned = {tuple(view.apply(picture).flatten().tolist()) for view in VIEWS}

    assert len(turned) == 7
    assert tuple(picture.flatten().tolist()) not in turned


@pytest.mark.parametrize("view", VIEWS, ids=str)
def test_a_cell_of_a_view_is_found_upright(view: View) -> None:
    upright = torch.rand(5, 3, 4)
    turned = view.apply(upright)

    places = view.upright(*turned.shape[1:])

    assert torch.equal(upright.flatten(1)[:, places], turned.flatten(1))


def test_copies_are_for_few_images_of_things_alone() -> None:
    few = 64
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(views, "FEW_NORMALS", few)

        assert may_turn(few, 1.0, CONFIG)
        assert not may_turn(few + 1, 1.0, CONFIG)
        assert not may_turn(few, 0.1, CONFIG)
        assert not may_turn(few, 1.0, DetectorConfig(smallest_defect=16))


def test_cells_of_views_are_those_of_the_turned_image(
    tmp_path: Path, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = write(tmp_path / "normal", np.linspace(0, 1, 4))
    run = context()
    cells, _ = sample_cells(paths, backbone, NAMES, run, at_least=1)
    kept = {name: each.without(torch.tensor([1])) for name, each in cells.items()}
    view = View(mirrored=True, quarters=1)
    monkeypatch.setattr(views, "CANDIDATE_CELLS", 60)

    added = add_views(kept, [view], paths, backbone, run)

    for name, count in (("8", 20), (IMAGE_SCALE, 1), (COARSE_SCALE, 20)):
        new = Cells(*(getattr(added[name], part)[len(kept[name].values) :] for part in ("values", "sources", "places")))
        assert torch.equal(added[name].values[: len(kept[name].values)], kept[name].values)
        assert new.sources.bincount().tolist() == [count, 0, count, count]
        image = to_tensor(load_image(paths[3], CONFIG.image_size))
        with torch.inference_mode():
            turned = scale_features(backbone, view.apply(image), NAMES)[name]
        upright = View(mirrored=True, quarters=1).apply(turned)[0].flatten(1).T  # this view undoes itself
        own = new.sources == 3
        torch.testing.assert_close(new.values[own], upright[new.places[own]])


def chosen_views(paths: list[Path], backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> list[View]:
    """Train, and tell in which views copies joined the memories."""
    joined: list[View] = []

    def spy(cells: Any, views: list[View], *rest: Any) -> Any:
        joined.extend(views)
        return add_views(cells, views, *rest)

    monkeypatch.setattr(views, "FEW_NORMALS", 64)
    monkeypatch.setattr(fit, "add_views", spy)
    trained = fit.train_detector(paths, [], backbone, context())
    assert len(trained.calibration.normal_scores) == len(paths)
    return joined


def test_things_that_lie_at_random_are_turned(
    tmp_path: Path, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = write(tmp_path / "normal", np.random.default_rng(0).uniform(0, 2 * np.pi, 16))

    assert len(chosen_views(paths, backbone, monkeypatch)) >= 3


def test_things_with_an_upper_side_are_not_turned_by_quarters(
    tmp_path: Path, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = write(tmp_path / "normal", np.random.default_rng(0).normal(0, 0.02, 16))

    assert not any(view.quarters % 2 for view in chosen_views(paths, backbone, monkeypatch))
