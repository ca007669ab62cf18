"""A GPU computes what the CPU does: `pytest -m gpu tests/scoring/test_gpu.py tests/pretraining`.

`ANOMALY_TEST_DEVICE=cpu` runs these tests on the CPU, to check them where there is no GPU.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import anomaly, rows_of
from shared_run import SETTINGS, Trained

DEVICE = os.environ.get("ANOMALY_TEST_DEVICE", "cuda")
TOLERANCE = 0.01  # of a score; a GPU convolves with 10-bit mantissas (TF32)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="torch sees no GPU"),
]


@pytest.fixture(autouse=True)
def float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU; its bfloat16 is coarser than what a GPU computes with."""
    monkeypatch.setenv("ANOMALY_FLOAT32", "1")


def run(*arguments: str | Path) -> bytes:
    """Run a command and return its data."""
    result = anomaly(*arguments, "-q")
    assert result.exit_code == 0, result.stderr
    return result.stdout_bytes


def rows(incoming: Path, model: Path, device: str) -> dict[str, dict[str, str]]:
    """Score a folder: rows by path, the most anomalous first."""
    return {row["path"]: row for row in rows_of(run("score", incoming, "-m", model, "--device", device, "-o", "-"))}


def assert_alike(incoming: Path, model: Path) -> None:
    """Compare scores of a GPU with those of the CPU."""
    expected, got = rows(incoming, model, "cpu"), rows(incoming, model, DEVICE)
    assert got.keys() == expected.keys()
    for path, row in expected.items():
        assert float(got[path]["score"]) == pytest.approx(float(row["score"]), rel=TOLERANCE), path


def assert_bad_first(incoming: Path, model: Path) -> None:
    worst = [Path(path).name for path in rows(incoming, model, DEVICE)][:3]
    assert all(name.startswith("bad") for name in worst), worst


def test_scores_are_those_of_the_cpu(trained: Trained) -> None:
    assert_alike(trained.folder / "incoming", trained.folder / trained.model)


def test_maps_are_those_of_the_cpu(trained: Trained, tmp_path: Path) -> None:
    for device in ("cpu", DEVICE):
        settings = ("-m", trained.folder / trained.model, "--device", device, "--raw", "npy")
        run("heatmap", trained.folder / "incoming", *settings, "--out", tmp_path / device / "maps")

    paths = sorted((tmp_path / "cpu").rglob("*.npy"))
    assert len(paths) == 9
    for path in paths:
        other = tmp_path / DEVICE / path.relative_to(tmp_path / "cpu")
        np.testing.assert_allclose(np.load(other), np.load(path), rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("backbone", ["embedded", "scratch"])
def test_training_finds_what_is_anomalous(trained: Trained, tmp_path: Path, backbone: str) -> None:
    model = tmp_path / "model.safetensors"

    run("train", trained.folder / "normal", "-m", model, *SETTINGS, "--device", DEVICE, "--backbone", backbone)

    assert_alike(trained.folder / "incoming", model)
    if backbone == "embedded":
        assert_bad_first(trained.folder / "incoming", model)


@pytest.mark.parametrize("kind", ["VIT", "CONVNEXT"])
def test_a_network_of_timm_trains_and_scores(trained: Trained, tmp_path: Path, kind: str) -> None:
    import timm_models

    backbone, model = getattr(timm_models, kind), tmp_path / "model.safetensors"
    weights = timm_models.weights_of(backbone, tmp_path)
    options = ("--image-size", "96", "--prototypes", "40", "--backbone", backbone, "--weights", weights)

    run("train", trained.folder / "normal", "-m", model, *options, "--device", DEVICE)

    assert_alike(trained.folder / "incoming", model)
    assert_bad_first(trained.folder / "incoming", model)
