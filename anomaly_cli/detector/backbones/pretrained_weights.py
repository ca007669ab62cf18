"""Pretrained weights of torchvision networks: from a file, torch's cache or the network."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlparse

import torch
from safetensors.torch import load
from torch import Tensor

from anomaly_cli.errors import WeightsError

CONNECT_TIMEOUT_S = 3.0


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a state dict from a file of safetensors or of `torch.save`.

    Raises:
        WeightsError: no such file, no state dict, or values that are not finite.
    """
    if not path.is_file():
        raise WeightsError(f"no such weights file: {path}")
    try:
        state = _parsed(path)
    except Exception as error:  # reading a foreign file may raise anything
        raise WeightsError(f"{path} is not a weights file (safetensors or a torch state dict)") from error
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise WeightsError(f"{path} holds no state dict")
    for name, value in state.items():
        if not bool(torch.isfinite(value).all()):
            raise WeightsError(f"{path} holds values that are not finite: {name}")
    return state


def _parsed(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return load(path.read_bytes())
    return torch.load(path, map_location="cpu", weights_only=True)


def cached_or_downloaded(name: str, url: str) -> dict[str, Tensor]:
    """Read the weights of a network from torch's cache, downloaded first if they are not there.

    Raises:
        WeightsError: neither in the cache nor downloadable; the message says where to put the file.
    """
    target = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
    if not target.is_file():
        _require_connection(name, url, target)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(target), progress=False)
        except (OSError, URLError, RuntimeError) as error:
            raise WeightsError(_missing_weights(name, url, target)) from error
    return read_weights(target)


def _require_connection(name: str, url: str, target: Path) -> None:
    """Fail within seconds where there is no network, instead of after the downloader's retries."""
    host = urlparse(url).hostname or ""
    try:
        socket.create_connection((host, 443), CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise WeightsError(_missing_weights(name, url, target)) from error


def _missing_weights(name: str, url: str, target: Path) -> str:
    return f"weights of {name} not found and no network: put {url} at {target}, or pass it with --weights FILE"
