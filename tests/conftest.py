"""Fixtures: small synthetic image folders, and one model trained on them for all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from command_line import FEW_DEFECTS, anomaly
from shared_run import CONFIG, SETTINGS, Trained, make_images

from anomaly_cli.detector.checkpoint import Model, load_model
from anomaly_cli.scoring import score as scoring
from anomaly_cli.training import stage2, views
from anomaly_cli.training import train as training

pytest_plugins = ["interrupted_runs", "model_files"]  # helpers with fixtures

torch.set_num_threads(1)  # small tensors: a second thread only waits for the first


@pytest.fixture(scope="session", autouse=True)
def few_synthetic_defects() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage2, "SYNTHETIC_DEFECTS", FEW_DEFECTS)
        yield


@pytest.fixture(scope="session", autouse=True)
def no_views() -> Iterator[None]:
    """Train without turned copies, which take as long as the rest; tests of them put them back."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(views, "FEW_NORMALS", 0)
        yield


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("trained")
    make_images(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("ANOMALY_DEVICE", "cpu")
        patch.delenv("ANOMALY_FLOAT32", raising=False)  # which the module that asks first may have set
        result = anomaly("train", "normal", *SETTINGS)
    assert result.exit_code == 0, result.stderr
    return Trained(folder, folder / "anomaly.safetensors", result)


@pytest.fixture(scope="session")
def trained_again(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> training.TrainReport:
    """Train once more on the same images, with another number of workers."""
    model = tmp_path_factory.mktemp("again") / "again.safetensors"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "worker_count", lambda: 3)
        return training.train([trained.folder / "normal"], model, CONFIG, device="cpu", progress=lambda *_: None)


@pytest.fixture(scope="session")
def loaded(trained: Trained) -> Model:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("ANOMALY_FLOAT32", raising=False)  # which decides how the network is laid out
        return load_model(trained.model)


@pytest.fixture
def here(trained: Trained, loaded: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder with the shared images below `normal` and `incoming` and a model under its default name.

    In this process the shared model is read from its file once only: building its network takes longer than all
    that most tests do with it.
    """

    def load_once(path: Path, device: torch.device | None = None) -> Model:
        return loaded if path.exists() and path.samefile(trained.model) else load_model(path, device)

    monkeypatch.setattr(scoring, "load_model", load_once)
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
        patch.setattr("anomaly_cli.detector.nearest_prototype.prefers_bfloat16", lambda: False)
        yield
