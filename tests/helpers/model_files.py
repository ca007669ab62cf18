"""Model files taken apart, changed and put together again."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load, save
from shared_run import Trained
from torch import Tensor

from anomaly_cli.detector import checkpoint
from anomaly_cli.detector.checkpoint import KEY, load_model
from anomaly_cli.errors import CheckpointError

Header = dict[str, Any]


def header_end(content: bytes) -> int:
    return 8 + int(struct.unpack("<Q", content[:8])[0])


def taken_apart(content: bytes) -> tuple[Header, dict[str, Tensor]]:
    document = json.loads(content[8 : header_end(content)])
    return json.loads(document["__metadata__"][KEY]), load(content)


def put_together(header: Header, state: dict[str, Tensor], *, signed: bool) -> bytes:
    if signed:
        header = {name: value for name, value in header.items() if name != "digest"}
        header["digest"] = checkpoint._digest(header, state)
    return save(state, {KEY: json.dumps(header)})


def refusal(path: Path) -> str:
    """Message with which both ways to read a model file refuse it."""
    with pytest.raises(CheckpointError) as loading:
        load_model(path)
    message = str(loading.value)
    assert message.count(os.fspath(path)) == 1
    assert "\n" not in message
    return message.replace(os.fspath(path), "FILE")


NOT_A_MODEL = "FILE is not a model file, or was cut short"
DAMAGED = f"FILE {checkpoint.DAMAGED}"


@pytest.fixture(scope="module")
def content(trained: Trained) -> bytes:
    return trained.model.read_bytes()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"
