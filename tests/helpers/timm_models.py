"""Tiny networks of timm with seeded random weights; a transformer with patches of 14 and registers is registered here.

Tests that import this skip where timm is not installed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from networks import saved
from torch import Tensor, nn

timm = pytest.importorskip("timm", reason="timm is not installed: pip install 'anomaly-cli[backbones]'")

VIT = "vit_anomaly_patch14_reg4_dinov2"  # depth 6, 32 channels, as DINOv2 with registers
PLAIN_VIT = "vit_anomaly_patch14_dinov2"  # the same without registers
CONVNEXT = "test_convnext"  # of timm's own tests
PATCH, DEPTH, WIDTH = 14, 6, 32

default_cfgs = timm.models.generate_default_cfgs(
    {f"{VIT}.random": {"hf_hub_id": "timm/"}, f"{PLAIN_VIT}.random": {"hf_hub_id": "timm/"}}
)


def vit_anomaly_patch14_reg4_dinov2(pretrained: bool = False, **options: Any) -> nn.Module:
    return _vit(VIT, pretrained, reg_tokens=4, no_embed_class=True, **options)


def vit_anomaly_patch14_dinov2(pretrained: bool = False, **options: Any) -> nn.Module:
    return _vit(PLAIN_VIT, pretrained, **options)


def _vit(name: str, pretrained: bool, **options: Any) -> nn.Module:
    size = {"patch_size": PATCH, "img_size": 70, "embed_dim": WIDTH, "depth": DEPTH, "num_heads": 2, "init_values": 1.0}
    network: nn.Module = timm.models.vision_transformer._create_vision_transformer(
        name, pretrained=pretrained, **{**size, **options}
    )
    return network


for _builder in (vit_anomaly_patch14_reg4_dinov2, vit_anomaly_patch14_dinov2):
    timm.models.register_model(_builder)


def random_network(name: str) -> Any:
    """Build a network whose parts all matter: timm starts class token, registers and positions near zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        options = {"dynamic_img_size": True} if "vit" in name else {}
        network = timm.create_model(name, num_classes=0, **options)
        for key, value in network.named_parameters():
            if key in ("cls_token", "reg_token", "pos_embed"):
                nn.init.normal_(value, std=0.5)
    return network.eval()


def weights_of(name: str, folder: Path) -> Path:
    return saved(contiguous(random_network(name).state_dict()), folder / f"{name}.safetensors")


def contiguous(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.contiguous() for key, value in state.items()}


def huggingface_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Name the tensors of a DINOv2 without registers as `Dinov2Model` of transformers does."""
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        if not key.startswith("blocks."):
            name = {
                "cls_token": "embeddings.cls_token",
                "pos_embed": "embeddings.position_embeddings",
                "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
                "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
                "norm.weight": "layernorm.weight",
                "norm.bias": "layernorm.bias",
            }[key]
            renamed[name] = value.clone()
            continue
        _, number, part = key.split(".", 2)
        layer = f"encoder.layer.{number}."
        if part.startswith("attn.qkv."):
            for each, rows in zip(("query", "key", "value"), value.chunk(3), strict=True):
                renamed[f"{layer}attention.attention.{each}.{part.split('.')[-1]}"] = rows.clone()
        else:
            part = part.replace("attn.proj", "attention.output.dense")
            for i in "12":
                part = part.replace(f"ls{i}.gamma", f"layer_scale{i}.lambda1")
            renamed[layer + part] = value.clone()
    renamed["embeddings.mask_token"] = torch.zeros(1, WIDTH)
    return renamed
