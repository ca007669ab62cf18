"""Networks of timm as backbones, compared with timm run by hand: names, weights, positions, bad input."""

from __future__ import annotations

import importlib.util
import socket
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import cut_network, normalised, random_images, saved, shapes
from timm_models import (
    CONVNEXT,
    PATCH,
    PLAIN_VIT,
    VIT,
    WIDTH,
    contiguous,
    huggingface_state,
    random_network,
    timm,
    weights_of,
)
from torch import Tensor

from anomaly_cli.config import DetectorConfig
from anomaly_cli.detector.backbones.build import build_backbone, empty_backbone
from anomaly_cli.detector.backbones.transformer import CentredRotaryPositions, Transformer, chosen_blocks
from anomaly_cli.detector.features import scale_features
from anomaly_cli.errors import ConfigError, MissingExtraError, WeightsError

MAPS = ("block_2", "block_3", "block_4", "block_5")


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No network and empty caches."""
    cut_network(monkeypatch, tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "huggingface"))


def by_hand(network: Any, images: Tensor) -> list[Tensor]:
    """Slow twin: block after block, positions interpolated as in the release of DINOv2 with registers."""
    N, _, H, W = images.shape
    h, w = H // PATCH, W // PATCH
    x = network.patch_embed.proj(normalised(images)).flatten(2).transpose(1, 2)  # (N, h*w, D)
    prefix = [network.cls_token] if network.reg_token is None else [network.cls_token, network.reg_token]
    own = 0 if network.no_embed_class else 1  # the class token has a position of its own
    side = round((network.pos_embed.shape[1] - own) ** 0.5)
    grid = network.pos_embed[:, own:].reshape(1, side, side, WIDTH).permute(0, 3, 1, 2)
    places = F.interpolate(grid, size=(h, w), mode="bicubic", antialias=True).flatten(2).transpose(1, 2)
    tokens = [token.expand(N, -1, -1) for token in prefix]
    tokens[0] = tokens[0] + network.pos_embed[:, :own].sum(dim=1, keepdim=True)
    x = torch.cat([*tokens, x + places], dim=1)
    outputs = []
    for block in network.blocks:
        x = block(x)
        outputs.append(x)
    skip = sum(token.shape[1] for token in prefix)
    maps = [outputs[i][:, skip:].transpose(1, 2).reshape(N, WIDTH, h, w) for i in (1, 2, 3, 4)]
    return [*maps, outputs[4][:, 0, :, None, None]]


@pytest.mark.parametrize("name", [VIT, PLAIN_VIT])
@torch.inference_mode()
def test_depths_of_a_transformer_and_its_class_token_are_those_of_a_slow_twin(name: str, tmp_path: Path) -> None:
    backbone, images = build_backbone(name, weights_of(name, tmp_path)), random_images(2, 70, 112)

    maps = backbone(images)

    assert backbone.names == (*MAPS, "class")
    assert backbone.strides == (PATCH,) * 4
    for each, expected in zip(maps, by_hand(random_network(name), images), strict=True):
        torch.testing.assert_close(each, expected, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_sides_that_are_no_multiple_of_the_patch_are_enlarged_to_the_next_one() -> None:
    backbone, images = empty_backbone(VIT), random_images(1, 65, 120)

    enlarged = F.interpolate(images, size=(70, 126), mode="bilinear")

    assert backbone(images)[0].shape[2:] == (5, 9)
    for each, expected in zip(backbone(images), backbone(enlarged), strict=True):
        torch.testing.assert_close(each, expected, rtol=1e-3, atol=1e-3)


@torch.inference_mode()
def test_the_image_scale_of_a_transformer_holds_last_map_and_class_token() -> None:
    backbone, images = empty_backbone(VIT), random_images(2, 70, 84)

    *_, last, token = backbone(images)

    cell = scale_features(backbone, images, ("image",))["image"]
    expected = torch.cat([last.mean((2, 3)), token[..., 0, 0], last.std((2, 3), correction=0)], dim=1)
    torch.testing.assert_close(cell[..., 0, 0], expected, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_a_convolutional_network_gives_the_maps_of_features_only(tmp_path: Path) -> None:
    weights = weights_of(CONVNEXT, tmp_path)
    expected = timm.create_model(
        CONVNEXT, features_only=True, pretrained=True, pretrained_cfg_overlay={"file": str(weights)}
    ).eval()
    backbone, images = build_backbone(CONVNEXT, weights), random_images()

    assert (backbone.names, backbone.strides) == (("4", "8", "16", "32"), (4, 8, 16, 32))
    for each, map_of_timm in zip(backbone(images), expected((images - backbone.mean) / backbone.std), strict=True):
        torch.testing.assert_close(each, map_of_timm, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("count", "blocks"), [(6, (2, 3, 4, 5)), (12, (4, 6, 8, 10)), (24, (8, 12, 16, 20)), (1, (1,))]
)
def test_blocks_are_taken_at_the_same_relative_depths(count: int, blocks: tuple[int, ...]) -> None:
    assert chosen_blocks(count) == blocks


@torch.inference_mode()
def test_rotary_positions_are_those_of_timm_for_any_grid() -> None:
    embedding = timm.layers.RotaryEmbeddingDinoV3(64, rotate_half=True)
    own = CentredRotaryPositions(embedding.periods)

    for shape in ((4, 6), (7, 3), (1, 1)):
        torch.testing.assert_close(own.get_embed(shape), embedding.get_embed(shape), rtol=0, atol=1e-6)


def test_dinov3_gets_the_rotary_positions_that_can_be_exported() -> None:
    network = empty_backbone("vit_small_patch16_dinov3").network

    assert isinstance(network, Transformer)
    assert isinstance(network.network.rope, CentredRotaryPositions)


def test_pixels_are_normalised_as_the_network_wants() -> None:
    mean = empty_backbone("test_vit").mean.flatten().tolist()

    assert mean == pytest.approx(timm.get_pretrained_cfg("test_vit").mean)
    assert mean == pytest.approx([0.5, 0.5, 0.5])


# Names


@pytest.mark.parametrize(
    ("alias", "name"),
    [("dinov2", "vit_small_patch14_dinov2.lvd142m"), ("dinov3", "vit_small_patch16_dinov3.lvd1689m")],
)
def test_an_alias_is_the_small_network_of_that_name(alias: str, name: str) -> None:
    assert DetectorConfig(backbone=alias).backbone == name
    assert timm.is_model_pretrained(name)


@pytest.mark.parametrize("name", ["resnet19", "resnet50.a9_in9k", "hf_hub:timm/resnet50.a1_in1k", ""])
@pytest.mark.parametrize("build", [build_backbone, empty_backbone])
def test_a_name_that_nobody_knows_is_refused(build: Any, name: str) -> None:
    with pytest.raises(ConfigError) as raised:
        build(name)

    assert str(raised.value) == (
        f"unknown backbone {name}: use embedded, scratch, a torchvision classification model such as resnet18, "
        "or a model of timm such as dinov2"
    )


@pytest.mark.parametrize("build", [build_backbone, empty_backbone])
def test_without_timm_one_line_says_what_to_install(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "anomaly_cli.detector.backbones.timm_networks.find_spec", lambda name: None if name == "timm" else find(name)
    )

    with pytest.raises(MissingExtraError) as raised:
        build("vit_small_patch14_dinov2.lvd142m")

    assert str(raised.value) == (
        "unknown backbone vit_small_patch14_dinov2.lvd142m: use embedded, scratch or a torchvision classification "
        "model such as resnet18; for models of timm such as dinov2: pip install 'anomaly-cli[backbones]'"
    )


def test_a_network_for_one_size_only_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^backbone test_vit_relpos takes no images of 128 by 160: "):
        empty_backbone("test_vit_relpos")


# Weights


@pytest.mark.parametrize("prefix", ["", "dinov2."])
def test_weights_by_the_names_of_transformers_give_the_same_state(tmp_path: Path, prefix: str) -> None:
    state = random_network(PLAIN_VIT).state_dict()
    named = {prefix + key: value for key, value in huggingface_state(state).items()}
    named |= {"classifier.weight": torch.zeros(2, 2)} if prefix else {}

    backbone = build_backbone(PLAIN_VIT, saved(named, tmp_path / "weights.safetensors"))

    loaded = backbone.state_dict()
    assert len(loaded) == len(state)
    for key, value in state.items():
        assert torch.equal(loaded[f"network.network.{key}"], value), key


def test_weights_of_the_first_release_with_registers_give_the_same_state(tmp_path: Path) -> None:
    state = random_network(VIT).state_dict()
    own_place = torch.full((1, 1, WIDTH), 0.25)
    released = {key: value for key, value in state.items() if key not in ("reg_token", "cls_token", "pos_embed")}
    released |= {"register_tokens": state["reg_token"], "mask_token": torch.zeros(1, WIDTH)}
    released |= {"cls_token": state["cls_token"] - own_place}
    released |= {"pos_embed": torch.cat([own_place, state["pos_embed"]], dim=1)}

    backbone = build_backbone(VIT, saved(released, tmp_path / "weights.pth"))

    for key, value in state.items():
        torch.testing.assert_close(backbone.state_dict()[f"network.network.{key}"], value)


def test_a_classifier_in_the_file_is_left_out(tmp_path: Path) -> None:
    state = {**random_network(CONVNEXT).state_dict(), "head.fc.weight": torch.zeros(5, 64)}

    build_backbone(CONVNEXT, saved(contiguous(state), tmp_path / "weights.safetensors"))


def test_weights_that_lack_a_tensor_are_refused(tmp_path: Path) -> None:
    state = random_network(VIT).state_dict()
    del state["blocks.3.attn.proj.bias"]
    file = saved(contiguous(state), tmp_path / "gap.safetensors")

    with pytest.raises(WeightsError, match=f"^{file} does not fit {VIT}: blocks.3.attn.proj.bias is missing$"):
        build_backbone(VIT, file)


def test_weights_by_the_names_of_transformers_that_lack_a_tensor_are_refused(tmp_path: Path) -> None:
    state = huggingface_state(random_network(PLAIN_VIT).state_dict())
    del state["encoder.layer.1.attention.attention.key.weight"]
    file = saved(state, tmp_path / "gap.safetensors")

    expected = f"^{file} does not fit {PLAIN_VIT}: encoder.layer.1.attention.attention.key.weight is missing$"
    with pytest.raises(WeightsError, match=expected):
        build_backbone(PLAIN_VIT, file)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    file = weights_of(CONVNEXT, tmp_path)

    with pytest.raises(WeightsError, match=f"^{file} does not fit {VIT}: "):
        build_backbone(VIT, file)


@pytest.mark.usefixtures("offline")
def test_without_network_one_line_names_the_file_to_bring_within_seconds() -> None:
    start = time.monotonic()

    with pytest.raises(WeightsError) as raised:
        build_backbone("vit_small_patch14_dinov2.lvd142m")

    assert time.monotonic() - start < 5
    assert str(raised.value) == (
        "weights of vit_small_patch14_dinov2.lvd142m not found and no network: bring https://huggingface.co/timm/"
        "vit_small_patch14_dinov2.lvd142m/resolve/main/model.safetensors and pass it with --weights FILE"
    )


@pytest.mark.usefixtures("offline")
def test_a_failed_download_is_one_line_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> str:
        raise RuntimeError("401 Client Error\nand much more")

    monkeypatch.setattr(socket, "create_connection", lambda *args: socket.socket())
    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)

    with pytest.raises(WeightsError) as raised:
        build_backbone(f"{VIT}.random")

    assert str(raised.value) == (
        f"weights of {VIT}.random cannot be downloaded (401 Client Error): bring https://huggingface.co/timm/"
        f"{VIT}.random/resolve/main/model.safetensors and pass it with --weights FILE"
    )


@pytest.mark.usefixtures("offline")
def test_weights_in_the_cache_of_the_hub_need_no_network(tmp_path: Path) -> None:
    commit = "0" * 40
    repository = tmp_path / "huggingface" / f"models--timm--{VIT}.random"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots" / commit).mkdir(parents=True)
    weights_of(VIT, tmp_path).rename(repository / "snapshots" / commit / "model.safetensors")

    backbone = build_backbone(VIT)

    expected = random_network(VIT).state_dict()
    assert torch.equal(backbone.state_dict()["network.network.pos_embed"], expected["pos_embed"])


@pytest.mark.usefixtures("offline")
def test_an_empty_backbone_reads_nothing_and_has_the_structure_of_a_built_one(tmp_path: Path) -> None:
    assert shapes(empty_backbone(VIT)) == shapes(build_backbone(VIT, weights_of(VIT, tmp_path)))
