"""A frozen teacher network replayed from a safetensors file that records its operations; never shipped."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn

STRIDES = (4, 8, 16, 32)
CHUNK = 8  # images at once: on a CPU, larger activations leave the cache and cost six times as much


class RecordedTeacher(nn.Module):
    """Folded convolutional network with linear bottlenecks (MobileNetV2's kind), TensorFlow `SAME` padding.

    The file's `ops` metadata lists convolutions (`in`, `out`, `stride`, `depthwise`, `relu6`, `at` = stride of
    the output) and additions in order; tensors are named `w<out>` and `b<out>`.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        with safe_open(path, "pt") as file:
            self.ops = json.loads(file.metadata()["ops"])
            for name in file.keys():  # noqa: SIM118 -- a safetensors handle is not iterable
                self.register_buffer(name, file.get_tensor(name).float())
        self.width = len(self.get_buffer(f"w{self.ops[-1]['out']}"))  # of the final embedding map

    @torch.inference_mode()
    def forward(self, images: Tensor) -> list[Tensor]:
        """Compute the last linear bottleneck at strides 4, 8, 16, 32 and the final embedding map.

        Args:
            images: (N, 3, H, W) RGB in [0, 1].

        Returns:
            Five maps, the last at stride 32 too.
        """
        chunks = images.split(CHUNK if images.device.type == "cpu" else len(images))
        return [torch.cat(maps) for maps in zip(*map(self._run, chunks), strict=True)]

    def _run(self, images: Tensor) -> list[Tensor]:
        values = {"input": images * 2 - 1}
        bottlenecks: dict[int, str] = {}
        for op in self.ops:
            if op["kind"] == "add":
                values[op["out"]] = values[op["in"]] + values[op["in2"]]
                bottlenecks[op["at"]] = op["out"]
                continue
            values[op["out"]] = self._convolve(op, values[op["in"]])
            if not op["relu6"]:
                bottlenecks[op["at"]] = op["out"]
        return [values[bottlenecks[stride]] for stride in STRIDES] + [values[self.ops[-1]["out"]]]

    def _convolve(self, op: dict[str, object], x: Tensor) -> Tensor:
        weight, bias = getattr(self, f"w{op['out']}"), getattr(self, f"b{op['out']}")
        kernel = weight.shape[-1]
        padding = kernel // 2
        if op["stride"] == 2:
            rows, cols = (max((-(-side // 2) - 1) * 2 + kernel - side, 0) for side in x.shape[-2:])
            x, padding = F.pad(x, (cols // 2, cols - cols // 2, rows // 2, rows - rows // 2)), 0
        groups = len(weight) if op["depthwise"] else 1
        x = F.conv2d(x, weight, bias, 2 if op["stride"] == 2 else 1, padding, groups=groups)
        return x.clamp(0, 6) if op["relu6"] else x
