"""The built wheel alone, in a clean environment without a network: what a user gets."""

import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
NO_NETWORK = """
import socket

def refuse(*args, **kwargs):
    raise OSError("the network is cut")

socket.socket.connect = refuse
socket.create_connection = refuse
socket.getaddrinfo = refuse
"""


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(cwd), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    return subprocess.run(list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True)


def make_normals(folder: Path) -> None:
    draw = np.random.default_rng(0)
    folder.mkdir()
    for i in range(8):
        Image.fromarray(draw.integers(80, 120, (64, 64, 3), np.uint8)).save(folder / f"{i}.png")


@pytest.fixture(scope="module")
def clean_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment with the wheel, this one's dependencies behind it and every connection refused."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # a copy: two workers that build in one folder trip over each other's files
    shutil.copytree(ROOT / "anomaly_cli", source / "anomaly_cli", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", folder, source]
    built = subprocess.run(list(map(str, build)), capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (wheel,) = folder.glob("*.whl")
    environment = folder / "environment"
    venv.create(environment, with_pip=False)
    python = environment / "bin" / "python"
    (site_packages,) = (environment / "lib").glob("python*/site-packages")
    installed = run(
        sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", site_packages, wheel, cwd=folder
    )
    assert installed.returncode == 0, installed.stderr
    # Folders named by a .pth file come after the environment's own, and their own .pth files are not read.
    (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (site_packages / "sitecustomize.py").write_text(NO_NETWORK)
    return python


def test_the_wheel_trains_and_scores_without_a_network(clean_python: Path, tmp_path: Path) -> None:
    make_normals(tmp_path / "normal")

    trained = run(clean_python, "-m", "anomaly_cli.cli", "train", "normal", "--image-size", "64", cwd=tmp_path)
    scored = run(clean_python, "-m", "anomaly_cli.cli", "score", "normal", cwd=tmp_path)
    where = run(clean_python, "-c", "import anomaly_cli; print(anomaly_cli.__file__)", cwd=tmp_path)

    assert trained.returncode == 0, trained.stderr
    assert "with the embedded backbone" in trained.stderr
    assert scored.returncode == 0, scored.stderr
    assert len((tmp_path / "scores.csv").read_text().splitlines()) == 9
    assert "site-packages" in where.stdout
    assert str(ROOT) + "/anomaly_cli" not in where.stdout


def test_an_uncached_torchvision_backbone_says_which_file_to_put_where(clean_python: Path, tmp_path: Path) -> None:
    make_normals(tmp_path / "normal")

    trained = run(clean_python, "-m", "anomaly_cli.cli", "train", "normal", "--backbone", "resnet18", cwd=tmp_path)

    assert trained.returncode == 1
    assert trained.stderr.startswith("error: weights of resnet18 not found and no network: put http")
    assert trained.stderr.endswith("or pass it with --weights FILE\n")
    assert trained.stderr.count("\n") == 1
