"""Pretrained weights from files, the cache and the network, compared with torchvision run by hand; bad files."""

from __future__ import annotations

import io
import os
import pickle
import socket
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from networks import (
    assert_same_maps,
    cut_network,
    random_images,
    random_model,
    resnet_maps,
    saved,
    shapes,
    squeezenet_maps,
)
from torch import nn

from anomaly_cli.detector.backbones.build import build_backbone, empty_backbone
from anomaly_cli.errors import WeightsError

RESNET_FILE = "resnet18-f37072fd.pth"  # as torchvision's address ends


@pytest.fixture(scope="module")
def squeezenet() -> nn.Module:
    return random_model("squeezenet1_1")


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    return random_model("resnet18")


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No network and an empty cache; returns the cache folder."""
    return cut_network(monkeypatch, tmp_path)


@pytest.mark.parametrize("file_name", ["weights.safetensors", "weights.pth"])
def test_squeezenet_from_a_file_gives_the_maps_of_torchvision(
    squeezenet: nn.Module, tmp_path: Path, file_name: str
) -> None:
    file = saved(squeezenet.state_dict(), tmp_path / file_name)

    backbone = build_backbone("squeezenet1_1", file)

    with torch.inference_mode():
        assert_same_maps(backbone, squeezenet_maps(squeezenet, random_images()))


def test_resnet_from_a_file_gives_the_maps_of_torchvision(resnet: nn.Module, tmp_path: Path) -> None:
    file = saved(resnet.state_dict(), tmp_path / "weights.pt")

    backbone = build_backbone("resnet18", file)

    with torch.inference_mode():
        assert_same_maps(backbone, resnet_maps(resnet, random_images()))


def test_a_file_without_the_classifier_will_do(squeezenet: nn.Module, tmp_path: Path) -> None:
    features = {key: value for key, value in squeezenet.state_dict().items() if not key.startswith("classifier.")}

    backbone = build_backbone("squeezenet1_1", saved(features, tmp_path / "features.safetensors"))

    with torch.inference_mode():
        assert_same_maps(backbone, squeezenet_maps(squeezenet, random_images()))


def test_a_file_in_the_format_of_old_torch_versions_will_do(squeezenet: nn.Module, tmp_path: Path) -> None:
    file = tmp_path / "legacy.pth"
    torch.save(squeezenet.state_dict(), file, _use_new_zipfile_serialization=False)

    backbone = build_backbone("squeezenet1_1", file)

    with torch.inference_mode():
        assert_same_maps(backbone, squeezenet_maps(squeezenet, random_images()))


def test_half_precision_weights_are_used_in_single_precision(squeezenet: nn.Module, tmp_path: Path) -> None:
    half = {key: value.half() for key, value in squeezenet.state_dict().items()}

    backbone = build_backbone("squeezenet1_1", saved(half, tmp_path / "half.safetensors"))

    assert {value.dtype for value in backbone.state_dict().values()} == {torch.float32}
    with torch.inference_mode():
        assert all(each.isfinite().all() for each in backbone(random_images()))


def test_weights_of_another_model_are_refused(resnet: nn.Module, tmp_path: Path) -> None:
    file = saved(resnet.state_dict(), tmp_path / "other.safetensors")

    with pytest.raises(WeightsError, match=f"{file} does not fit squeezenet1_1: features.0.weight is missing"):
        build_backbone("squeezenet1_1", file)


def test_weights_of_another_width_are_refused(resnet: nn.Module, tmp_path: Path) -> None:
    state = resnet.state_dict()
    state["layer1.0.conv1.weight"] = torch.zeros(32, 64, 3, 3)
    file = saved(state, tmp_path / "narrow.pth")

    with pytest.raises(WeightsError, match=f"{file} does not fit resnet18: a tensor has another shape"):
        build_backbone("resnet18", file)


def test_weights_that_miss_a_key_are_refused(resnet: nn.Module, tmp_path: Path) -> None:
    state = resnet.state_dict()
    del state["layer2.1.bn2.bias"]
    file = saved(state, tmp_path / "gap.safetensors")

    with pytest.raises(WeightsError, match=f"{file} does not fit resnet18: layer2.1.bn2.bias is missing"):
        build_backbone("resnet18", file)


def test_weights_with_a_key_too_many_are_refused(resnet: nn.Module, tmp_path: Path) -> None:
    file = saved({**resnet.state_dict(), "layer5.weight": torch.zeros(1)}, tmp_path / "more.safetensors")

    with pytest.raises(WeightsError, match=f"{file} does not fit resnet18: layer5.weight is unknown"):
        build_backbone("resnet18", file)


def test_a_missing_weights_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=f"no such weights file: {tmp_path / 'none.pth'}"):
        build_backbone("squeezenet1_1", tmp_path / "none.pth")


@pytest.mark.parametrize("file_name", ["weights.safetensors", "weights.pth"])
@pytest.mark.parametrize(
    "content", [b"", b"not weights\n", b"\x89PNG\r\n\x1a\n" + bytes(64), b"PK\x03\x04" + bytes(64)]
)
def test_a_file_of_something_else_is_refused(tmp_path: Path, file_name: str, content: bytes) -> None:
    file = tmp_path / file_name
    file.write_bytes(content)

    with pytest.raises(WeightsError, match=f"{file} is not a weights file"):
        build_backbone("squeezenet1_1", file)


@pytest.mark.parametrize("file_name", ["weights.safetensors", "weights.pth"])
def test_a_weights_file_cut_short_is_refused(squeezenet: nn.Module, tmp_path: Path, file_name: str) -> None:
    file = saved(squeezenet.state_dict(), tmp_path / file_name)
    file.write_bytes(file.read_bytes()[:-5000])

    with pytest.raises(WeightsError, match=f"{file} is not a weights file"):
        build_backbone("squeezenet1_1", file)


class RunsCode:
    """Pickles to a call that leaves a file behind when it is executed."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("as_zip", [True, False])
def test_code_in_a_pickled_weights_file_is_not_executed(tmp_path: Path, as_zip: bool) -> None:
    marker, file = tmp_path / "executed", tmp_path / "evil.pth"
    content = io.BytesIO()
    if as_zip:
        torch.save({"conv1.weight": RunsCode(marker)}, content)
    else:
        pickle.dump(RunsCode(marker), content)
    file.write_bytes(content.getvalue())

    with pytest.raises(WeightsError, match=f"{file} is not a weights file"):
        build_backbone("squeezenet1_1", file)

    assert not marker.exists()


@pytest.mark.parametrize("content", [[torch.zeros(3)], {"epoch": 3, "state_dict": {"fc.weight": torch.zeros(3)}}])
def test_a_file_that_holds_no_state_dict_is_refused(tmp_path: Path, content: object) -> None:
    file = tmp_path / "run.pth"
    torch.save(content, file)

    with pytest.raises(WeightsError, match=f"{file} holds no state dict"):
        build_backbone("squeezenet1_1", file)


def test_a_dictionary_with_other_keys_than_strings_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "numbered.pth"
    torch.save({1: torch.zeros(3)}, file)

    with pytest.raises(WeightsError, match=f"{file} holds no state dict"):
        build_backbone("squeezenet1_1", file)


def test_weights_that_are_not_finite_are_refused(squeezenet: nn.Module, tmp_path: Path) -> None:
    state = squeezenet.state_dict()
    state["features.3.squeeze.bias"] = torch.full((16,), float("nan"))
    file = saved(state, tmp_path / "diverged.safetensors")

    with pytest.raises(WeightsError, match=r"holds values that are not finite: features\.3\.squeeze\.bias"):
        build_backbone("squeezenet1_1", file)


def test_without_network_one_line_names_the_file_and_its_place_within_seconds(offline: Path) -> None:
    start = time.monotonic()

    with pytest.raises(WeightsError) as raised:
        build_backbone("resnet18")

    assert time.monotonic() - start < 5
    assert str(raised.value) == (
        "weights of resnet18 not found and no network: put "
        f"https://download.pytorch.org/models/{RESNET_FILE} at {offline / RESNET_FILE}, or pass it with --weights FILE"
    )
    assert not offline.exists()


def test_a_failed_download_is_one_line_too(offline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise ConnectionResetError("connection reset by peer")

    monkeypatch.setattr(socket, "create_connection", lambda *args: socket.socket())
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)

    with pytest.raises(WeightsError, match="weights of resnet18 not found"):
        build_backbone("resnet18")

    assert not (offline / RESNET_FILE).exists()


def test_a_cache_that_cannot_be_written_is_one_line_too(offline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "create_connection", lambda *args: socket.socket())
    offline.parent.write_text("a file where the cache folder should be")

    with pytest.raises(WeightsError, match="resnet18"):
        build_backbone("resnet18")


def test_weights_in_the_cache_need_no_network(offline: Path, resnet: nn.Module) -> None:
    offline.mkdir(parents=True)
    saved(resnet.state_dict(), offline / RESNET_FILE)

    backbone = build_backbone("resnet18")

    with torch.inference_mode():
        assert_same_maps(backbone, resnet_maps(resnet, random_images()))


def test_a_download_lands_in_the_cache_and_is_used(
    offline: Path, resnet: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    addresses = []

    def download(url: str, target: str, progress: bool) -> None:
        addresses.append(url)
        saved(resnet.state_dict(), Path(target))

    monkeypatch.setattr(socket, "create_connection", lambda *args: socket.socket())
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)

    backbone = build_backbone("resnet18")

    assert addresses == [f"https://download.pytorch.org/models/{RESNET_FILE}"]
    assert (offline / RESNET_FILE).is_file()
    with torch.inference_mode():
        assert_same_maps(backbone, resnet_maps(resnet, random_images()))


def test_every_torchvision_name_that_is_accepted_has_pretrained_weights() -> None:
    for name in torchvision.models.list_models(module=torchvision.models):
        assert torchvision.models.get_model_weights(name).DEFAULT.url.startswith("https://")


def test_an_empty_backbone_has_the_structure_of_a_built_one(squeezenet: nn.Module, tmp_path: Path) -> None:
    file = saved(squeezenet.state_dict(), tmp_path / "weights.safetensors")

    assert shapes(empty_backbone("embedded")) == shapes(build_backbone("embedded"))
    assert shapes(empty_backbone("squeezenet1_1")) == shapes(build_backbone("squeezenet1_1", file))


def test_an_empty_backbone_reads_and_downloads_nothing(offline: Path) -> None:
    empty_backbone("squeezenet1_1")

    assert not offline.exists()


def test_the_embedded_weights_come_from_the_package(offline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(offline.parents[1])

    first, second = (build_backbone("embedded").state_dict() for _ in range(2))

    assert all(torch.equal(first[key], second[key]) for key in first)
    weight = first["network.stem.conv.weight"]
    assert weight.std() > 0.01
    assert not torch.equal(weight, build_backbone("scratch").state_dict()["network.stem.conv.weight"])
