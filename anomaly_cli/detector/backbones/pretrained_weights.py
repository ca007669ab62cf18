"""Pretrained weights of networks of torchvision and timm: from a file, a cache or the network."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlparse

import torch
from safetensors.torch import load
from torch import Tensor, nn

from anomaly_cli.errors import WeightsError

CONNECT_TIMEOUT_S = 3.0
HUB_FILE = "model.safetensors"  # of the repositories that timm publishes


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
    target = _place_in_cache(url)
    if not target.is_file():
        message = _missing_weights(name, url, target)
        _require_connection(url, message)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(target), progress=False)
        except (OSError, URLError, RuntimeError) as error:
            raise WeightsError(message) from error
    return read_weights(target)


def from_hub_or_url(name: str, config: dict[str, Any]) -> tuple[str, dict[str, Tensor]]:
    """Read the weights that timm names for a network from a cache, downloaded first if they are in none.

    Args:
        name: of the network.
        config: its `pretrained_cfg`, with the repository at huggingface.co or the address of a file.

    Returns:
        Address or file, and the state dict.

    Raises:
        WeightsError: neither in a cache nor downloadable; the message names the file to bring.
    """
    repository, url = config.get("hf_hub_id"), str(config.get("url") or "")
    if url and _place_in_cache(url).is_file():
        return url, read_weights(_place_in_cache(url))
    if repository:
        path = _from_hub(name, repository, config.get("hf_hub_filename") or HUB_FILE)
        return str(path), read_weights(path)
    if not url:
        raise WeightsError(f"timm names no weights of {name}: pass a file with --weights FILE")
    return url, cached_or_downloaded(name, url)


def _from_hub(name: str, repository: str, file_name: str) -> Path:
    """Find a file of a repository at huggingface.co in its cache, downloaded first if it is not there."""
    import huggingface_hub  # comes with timm
    from huggingface_hub.utils import disable_progress_bars

    cached = huggingface_hub.try_to_load_from_cache(repository, file_name)
    if isinstance(cached, str):
        return Path(cached)
    url = huggingface_hub.hf_hub_url(repository, file_name)
    bring = f"bring {url} and pass it with --weights FILE"
    _require_connection(url, f"weights of {name} not found and no network: {bring}")
    try:
        disable_progress_bars()
        return Path(huggingface_hub.hf_hub_download(repository, file_name))
    except Exception as error:  # whatever its HTTP library raises
        reason = str(error).strip().partition("\n")[0]
        raise WeightsError(f"weights of {name} cannot be downloaded ({reason}): {bring}") from error


def load_into(
    network: nn.Module, state: dict[str, Tensor], source: str, name: str, classifier: tuple[str, ...] = ()
) -> None:
    """Load weights into a network.

    Args:
        network: with random weights.
        state: its state dict.
        source: where that comes from, for errors.
        name: of the network, likewise.
        classifier: prefixes of what may be missing, as it is not used here.

    Raises:
        WeightsError: something is missing, unknown or of another shape.
    """
    try:
        missing, unexpected = network.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise WeightsError(f"{source} does not fit {name}: a tensor has another shape") from error
    missing = [key for key in missing if not key.startswith(classifier)]
    if missing or unexpected:
        key = (missing or unexpected)[0]
        raise WeightsError(f"{source} does not fit {name}: {key} is {'missing' if missing else 'unknown'}")


def _place_in_cache(url: str) -> Path:
    """Name the file of an address in torch's cache, which timm uses too."""
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name


def _require_connection(url: str, message: str) -> None:
    """Fail within seconds where there is no network, instead of after the downloader's retries."""
    host = urlparse(url).hostname or ""
    try:
        socket.create_connection((host, 443), CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise WeightsError(message) from error


def _missing_weights(name: str, url: str, target: Path) -> str:
    return f"weights of {name} not found and no network: put {url} at {target}, or pass it with --weights FILE"
