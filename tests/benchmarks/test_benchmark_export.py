"""The benchmark of exported models: what it times and how it compares."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx

from benchmarks.robustness.export import COARSE, Pixels, coarse_convolutions, compare


def test_ways_are_compared_with_the_first_by_the_order_of_their_scores() -> None:
    images: list[Pixels] = [np.full((1, 3, 2, 2), value, np.float32) for value in (0.1, 0.4, 0.2, 0.3)]
    ways = {"plain": lambda x: float(x.mean()), "turned": lambda x: -float(x.mean())}

    rows = compare(ways, images, workers=2)

    assert [name for name, _, _ in rows] == ["plain", "turned"]
    assert [agreement for _, _, agreement in rows] == [1.0, -1.0]
    assert all(rate > 0 for _, rate, _ in rows)


def test_coarse_convolutions_are_the_wide_ones(tmp_path: Path) -> None:
    nodes, weights = [], []
    for width in (COARSE - 1, COARSE, 2 * COARSE):
        weights.append(onnx.helper.make_tensor(f"w{width}", onnx.TensorProto.FLOAT, [width, 1, 1, 1], [0.0] * width))
        nodes.append(onnx.helper.make_node("Conv", ["x", f"w{width}"], [f"y{width}"], name=f"conv{width}"))
    nodes.append(onnx.helper.make_node("Relu", ["y1"], ["z"], name="relu"))
    graph = onnx.helper.make_graph(nodes, "convolutions", [], [], weights)
    onnx.save(onnx.helper.make_model(graph), tmp_path / "model.onnx")

    assert coarse_convolutions(tmp_path / "model.onnx") == [f"conv{COARSE}", f"conv{2 * COARSE}"]
