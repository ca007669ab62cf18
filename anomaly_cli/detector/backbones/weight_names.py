"""Names of tensors in published weights of DINOv2: those of transformers (Hugging Face) become those of its authors."""

from __future__ import annotations

import re

import torch
from torch import Tensor

QUERY = re.compile(r"encoder\.layer\.(\d+)\.attention\.attention\.query\.(weight|bias)")
PARTS = {
    r"^embeddings\.patch_embeddings\.projection\.": "patch_embed.proj.",
    r"^embeddings\.position_embeddings$": "pos_embed",
    r"^embeddings\.": "",  # class token, register tokens, mask token
    r"^encoder\.layer\.": "blocks.",
    r"\.attention\.output\.dense\.": ".attn.proj.",
    r"\.layer_scale([12])\.lambda1$": r".ls\1.gamma",
    r"\.mlp\.weights_in\.": ".mlp.w12.",
    r"\.mlp\.weights_out\.": ".mlp.w3.",
    r"^layernorm\.": "norm.",
}


def with_dinov2_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of `Dinov2Model` of transformers, and join query, key and value; other states are returned.

    Raises:
        KeyError: a key or a value is missing.
    """
    prefix = "dinov2." if any(key.startswith("dinov2.embeddings.") for key in state) else ""
    own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    if "embeddings.position_embeddings" not in own or not any(map(QUERY.fullmatch, own)):
        return state
    renamed: dict[str, Tensor] = {}
    for key, value in own.items():
        if match := QUERY.fullmatch(key):
            parts = [own[key.replace(".query.", f".{part}.")] for part in ("query", "key", "value")]
            renamed[f"blocks.{match[1]}.attn.qkv.{match[2]}"] = torch.cat(parts)
        elif ".attention.attention." not in key:
            for pattern, replacement in PARTS.items():
                key = re.sub(pattern, replacement, key)
            renamed[key] = value
    # By this name timm recognises the release, whose class token has a position of its own beside registers.
    renamed.setdefault("mask_token", torch.zeros(1))
    return renamed
