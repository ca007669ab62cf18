"""Model files that were damaged or forged are refused."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from model_files import DAMAGED, NOT_A_MODEL, Header, header_end, put_together, refusal, taken_apart
from torch import Tensor

from anomaly_cli.detector.checkpoint import load_model, read_header
from anomaly_cli.errors import CheckpointError

FLIPS = 40  # bits flipped in the header, and as many in the tensors


@pytest.mark.parametrize("share", [0.0001, 0.001, 0.1, 0.5, 0.9, 0.9999])
def test_a_file_that_was_cut_short_is_refused(file: Path, content: bytes, share: float) -> None:
    file.write_bytes(content[: int(len(content) * share)])

    assert refusal(file) == NOT_A_MODEL


@pytest.mark.parametrize("place", [-1, 0, 1])
def test_a_file_cut_at_the_end_of_its_header_or_of_itself_is_refused(file: Path, content: bytes, place: int) -> None:
    file.write_bytes(content[: header_end(content) + place])
    assert refusal(file) == NOT_A_MODEL

    file.write_bytes(content[:-1] if place < 0 else content + b"\0")
    assert refusal(file) == NOT_A_MODEL


def test_a_flipped_bit_anywhere_is_noticed(file: Path, content: bytes) -> None:
    rng = np.random.default_rng(0)
    end = header_end(content)
    places = [*range(8), *rng.integers(8, end, FLIPS).tolist(), *rng.integers(end, len(content), FLIPS).tolist()]
    file.write_bytes(content)
    original = read_header(file)

    for place in [*places, end, len(content) - 1]:
        flipped = content[place] ^ 1 << int(rng.integers(8))
        _overwrite(file, place, flipped)
        with suppress(CheckpointError):
            unnoticed = read_header(file)
            # In the header, 1e-05 may have become 1E-05.
            assert (place < end, unnoticed) == (True, original)
        _overwrite(file, place, content[place])
    assert file.read_bytes() == content


def _overwrite(path: Path, place: int, value: int) -> None:
    with path.open("r+b") as stream:
        stream.seek(place)
        stream.write(bytes([value]))


def test_a_block_of_zeros_as_after_a_power_cut_is_noticed(file: Path, content: bytes) -> None:
    middle = len(content) // 2
    file.write_bytes(content[:middle] + bytes(4096) + content[middle + 4096 :])

    assert refusal(file) == DAMAGED


def test_tensors_that_swap_their_names_are_noticed(file: Path, content: bytes) -> None:
    header, state = taken_apart(content)
    first, second = (f"scales.stride_{name}.cell_mean" for name in header["scales"][:2])
    state[first], state[second] = state[second], state[first]
    file.write_bytes(put_together(header, state, signed=False))

    assert refusal(file) == DAMAGED


def _set(*keys: str | int, to: object) -> Callable[[Header], None]:
    def edit(header: Header) -> None:
        inner: Any = header
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = to

    return edit


EDITS: dict[str, Callable[[Header], object]] = {
    "config": _set("config", "image_size", to=128),
    "seed": _set("config", "seed", to=1),
    "calibration": _set("calibration", "normal_deviations", 0, 0, to=0.5),
    "limit": _set("calibration", "score_unit", "limit", to=0.5),
    "map unit": _set("map_unit", "limit", to=9.0),
    "origin": _set("provenance", "images", to=1000),
    "addition": _set("more", to=1),
    "digest": _set("digest", to="0" * 64),
    "no digest": lambda header: header.pop("digest"),
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edited_header_is_noticed(file: Path, content: bytes, name: str) -> None:
    header, state = taken_apart(content)
    EDITS[name](header)
    file.write_bytes(put_together(header, state, signed=False))

    assert refusal(file) == DAMAGED


HOSTILE: dict[str, Callable[[Header], object]] = {
    "size out of range": _set("config", "image_size", to=10**9),
    "unknown setting": _set("config", "colour", to="red"),
    "unknown effort": _set("config", "effort", to="none"),
    "settings as a list": _set("config", to=[]),
    "no settings": lambda header: header.pop("config"),
    "unknown backbone": _set("config", "backbone", to="resnet17"),
    "another backbone": _set("config", "backbone", to="squeezenet1_1"),
    "backbone of no text": _set("config", "backbone", to=None),
    "no scale": _set("scales", to=[]),
    "a scale too few": lambda header: header["scales"].pop(),
    "unknown scale": _set("scales", to=["8", "nowhere"]),
    "scales as a number": _set("scales", to=3),
    "no calibration": _set("calibration", to=None),
    "calibration in words": _set("calibration", "location", to=["many"]),
    "no normal deviation": _set("calibration", "normal_deviations", to=[]),
    "normal deviations of another detector": _set("calibration", "normal_deviations", to=[[0.5, 0.5]]),
    "a normal deviation of zero": _set("calibration", "normal_deviations", 0, 0, to=0.0),
    "calibration of another length": _set("calibration", "spread", to=[1.0]),
    "no unit": lambda header: header.pop("map_unit"),
    "a unit of no number": _set("calibration", "score_unit", "median", to=None),
    "a unit of no size": _set("map_unit", "limit", to=-9.0),
    "a unit without end": _set("calibration", "scale_units", 0, "limit", to=float("inf")),
    "no spread": _set("calibration", "spread", 0, to=0.0),
    "a location that is no number": _set("calibration", "location", 0, to=float("nan")),
    "a negative weight": _set("calibration", "weights", 0, to=-1.0),
    "an origin of another kind": _set("provenance", "suspects", to=[]),
    "origin incomplete": lambda header: header["provenance"].pop("images"),
}


@pytest.mark.parametrize("name", ["no spread", "an origin of another kind", "no calibration", "scales as a number"])
def test_a_signed_header_that_fits_no_detector_is_not_described(file: Path, content: bytes, name: str) -> None:
    header, state = taken_apart(content)
    HOSTILE[name](header)
    file.write_bytes(put_together(header, state, signed=True))

    with pytest.raises(CheckpointError) as reading:
        read_header(file)
    assert str(reading.value).replace(os.fspath(file), "FILE") == DAMAGED


@pytest.mark.parametrize("name", HOSTILE)
def test_a_signed_header_that_fits_no_detector_is_refused(file: Path, content: bytes, name: str) -> None:
    header, state = taken_apart(content)
    HOSTILE[name](header)
    file.write_bytes(put_together(header, state, signed=True))

    assert refusal(file) == DAMAGED


@pytest.mark.parametrize("change", ["missing", "added", "shape", "empty"])
def test_signed_tensors_that_fit_no_detector_are_refused(file: Path, content: bytes, change: str) -> None:
    header, state = taken_apart(content)
    name = "scales.stride_8.memory.prototypes"
    if change == "missing":
        del state[name]
    elif change == "added":
        state["one.more"] = torch.ones(1)
    else:
        state[name] = state[name][:, :-1].contiguous() if change == "shape" else state[name][:0].contiguous()
    file.write_bytes(put_together(header, state, signed=True))

    assert refusal(file) == DAMAGED


TORN: dict[str, Callable[[dict[str, Tensor]], object]] = {
    "no ends": lambda state: state.pop("patches.8.ends"),
    "no content": lambda state: state.pop("patches.image.content"),
    "a scale of their own": lambda state: state.update({"patches.4.ends": torch.ones(1, dtype=torch.int64)}),
    "one too few": lambda state: state.update({"patches.8.ends": state["patches.8.ends"][1:].clone()}),
    "cut short": lambda state: state.update({"patches.16.content": state["patches.16.content"][:-1].clone()}),
    "other numbers": lambda state: state.update({"patches.16.content": state["patches.16.content"].float()}),
}


@pytest.mark.parametrize("name", TORN)
def test_signed_thumbnails_that_fit_no_prototypes_are_refused(file: Path, content: bytes, name: str) -> None:
    header, state = taken_apart(content)
    TORN[name](state)
    file.write_bytes(put_together(header, state, signed=True))

    with pytest.raises(CheckpointError) as loading:
        load_model(file)
    assert str(loading.value).replace(os.fspath(file), "FILE") == DAMAGED
