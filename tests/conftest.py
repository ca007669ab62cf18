"""Fixtures: small synthetic image folders, and one model trained on them for all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import anomaly
from numpy.typing import NDArray
from PIL import Image
from typer.testing import Result

from anomaly_cli import pipeline
from anomaly_cli.checkpoint import Model, load_model
from anomaly_cli.config import DetectorConfig, Effort

torch.set_num_threads(1)  # small tensors: a second thread only waits for the first

SIDE = 64  # pixels, of most images
NORMALS = 12
SETTINGS = ("--image-size", "64", "--prototypes", "50", "--effort", "quick")
CONFIG = DetectorConfig(image_size=64, prototypes=50, effort=Effort.QUICK)


@dataclass(frozen=True)
class Trained:
    """What all tests share.

    Attributes:
        folder: holds `normal`, `incoming` and the model file.
        model: the model file, trained by the command line on `normal`, as seen from `folder`.
        result: what that command printed.
    """

    folder: Path
    model: Path
    result: Result


def texture(rng: np.random.Generator, height: int, width: int) -> NDArray[np.uint8]:
    """Make a normal image: soft waves and some noise."""
    y, x = np.mgrid[:height, :width]
    waves = 128 + 30 * np.sin(y / 3) + 30 * np.cos(x / 4)
    noisy = waves[..., None] + rng.normal(0, 8, (height, width, 3))
    pixels: NDArray[np.uint8] = np.clip(noisy, 0, 255).astype(np.uint8)
    return pixels


def spoiled(rng: np.random.Generator, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Replace a patch of an image by coloured noise."""
    top, left = rng.integers(8, 40, 2)
    spoiled = pixels.copy()
    spoiled[top : top + 16, left : left + 16] = rng.integers(0, 256, (16, 16, 3))
    return spoiled


def make_images(folder: Path) -> None:
    """Fill `normal` (12 images, 2 files that are none) and `incoming` (6 normal images, 3 anomalous ones)."""
    rng = np.random.default_rng(0)
    normal, incoming, deep = folder / "normal", folder / "incoming", folder / "incoming" / "deep"
    normal.mkdir()
    deep.mkdir(parents=True)
    for i in range(NORMALS):
        Image.fromarray(texture(rng, SIDE, SIDE)).save(normal / f"{i:02}.{'png' if i % 2 else 'jpg'}", quality=95)
    (normal / "empty.png").touch()
    (normal / "words.jpg").write_bytes(b"no picture at all, only words")
    for i in range(5):
        Image.fromarray(texture(rng, SIDE, SIDE)).save(incoming / f"good{i}.png")
    for i in range(3):
        Image.fromarray(spoiled(rng, texture(rng, SIDE, SIDE))).save(incoming / f"bad{i}.jpg", quality=95)
    Image.fromarray(texture(rng, SIDE, SIDE)).save(deep / "good one.png")


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("trained")
    make_images(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("ANOMALY_DEVICE", "cpu")
        result = anomaly("train", "normal", *SETTINGS)
    assert result.exit_code == 0, result.stderr
    return Trained(folder, folder / "anomaly.safetensors", result)


@pytest.fixture(scope="session")
def trained_again(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> pipeline.TrainReport:
    """Train once more on the same images, with another number of workers."""
    model = tmp_path_factory.mktemp("again") / "again.safetensors"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "worker_count", lambda: 3)
        return pipeline.train([trained.folder / "normal"], model, CONFIG, device="cpu", progress=lambda *_: None)


@pytest.fixture(scope="session")
def loaded(trained: Trained) -> Model:
    return load_model(trained.model)


@pytest.fixture
def here(trained: Trained, loaded: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder with the shared images below `normal` and `incoming` and a model under its default name.

    In this process the shared model is read from its file once only: building its network takes longer than all
    that most tests do with it.
    """

    def load_once(path: Path, device: torch.device | None = None) -> Model:
        return loaded if path.exists() and path.samefile(trained.model) else load_model(path, device)

    monkeypatch.setattr(pipeline, "load_model", load_once)
    for name in ("normal", "incoming"):
        (tmp_path / name).symlink_to(trained.folder / name)
    os.link(trained.model, tmp_path / trained.model.name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ANOMALY_MODEL", raising=False)
    monkeypatch.setenv("ANOMALY_DEVICE", "cpu")
    return tmp_path


@pytest.fixture(scope="module")
def float32_search() -> Iterator[None]:
    """Search for prototypes exactly, as where a processor has no bfloat16, for comparisons with slow twins."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("anomaly_cli.memory.prefers_bfloat16", lambda: False)
        yield
