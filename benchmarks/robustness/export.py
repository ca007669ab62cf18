"""Measure an exported model against the detector: `python -m benchmarks.robustness.export --data DIR/screw`.

Trains on the normal images of a set in MVTec layout and exports the model. Prints, for one core and for two, images/s
of each way to compute the scores of the test images, in times of the detector's in torch in float32, and how well their
order agrees with torch's (Spearman). All take turns in one process, one image at a time on each core, pixels decoded
before.

int8 is static quantisation, calibrated on normal images: of every product (`all`), of the network's convolutions alone
(`convolutions`), or of those from stride 8 on (`coarse`). The ways of OpenVINO are measured where `openvino` and
`nncf` are installed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr

from anomaly_cli.config import DetectorConfig
from anomaly_cli.detector.checkpoint import Model
from anomaly_cli.detector.devices import FLOAT32_VARIABLE
from anomaly_cli.detector.onnx_export import CalibratedDetector, export
from anomaly_cli.images.decode import load_image
from anomaly_cli.scoring.parallel import parallel_map
from anomaly_cli.scoring.pixels import to_tensor
from anomaly_cli.training import train as training
from benchmarks.accuracy.datasets import AnomalySet, read_mvtec
from benchmarks.accuracy.quality import quiet
from benchmarks.speed.speed import seconds

ROUNDS = 3  # what is compared takes turns, so that a busy machine slows all
CALIBRATION = 64  # normal images that int8 is calibrated on
PRODUCTS = {"convolutions": ["Conv"], "all": ["Conv", "MatMul", "Gemm"]}
COARSE = 96  # channels and more have the convolutions of the embedded network from stride 8 on

Pixels = NDArray[np.float32]  # (1, 3, H, W) in [0, 1]
Scorer = Callable[[Pixels], float]


def torch_scorer(detector: CalibratedDetector) -> Scorer:
    """Score by the detector itself."""

    @torch.inference_mode()
    def score(pixels: Pixels) -> float:
        return float(detector(torch.from_numpy(pixels))[1])

    return score


def onnx_scorer(path: Path) -> Scorer:
    """Score by onnxruntime, one thread a call."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda pixels: float(session.run(["score"], {"images": pixels})[0][0])


def quantize(
    path: Path, out: Path, calibration: list[Pixels], products: list[str], nodes: list[str] | None = None
) -> Path:
    """Quantise the named operators, or those of them that are among the nodes, to int8 by onnxruntime."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches = iter(calibration)

        def get_next(self) -> dict[str, Pixels] | None:
            pixels = next(self.batches, None)
            return None if pixels is None else {"images": pixels}

    quantize_static(
        path,
        out,
        Reader(),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=products,
        nodes_to_quantize=nodes,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    return out


def coarse_convolutions(path: Path) -> list[str]:
    """Name the convolutions with at least `COARSE` channels out."""
    import onnx

    graph = onnx.load(path).graph
    widths = {weight.name: weight.dims[0] for weight in graph.initializer if weight.dims}
    return [node.name for node in graph.node if node.op_type == "Conv" and widths[node.input[1]] >= COARSE]


def openvino_scorer(model: Any, precision: str) -> Scorer:
    """Score by OpenVINO, one thread a call."""
    import openvino

    settings = {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": 2,
        "NUM_STREAMS": 2,
        "ENABLE_CPU_PINNING": False,
    }
    compiled = openvino.Core().compile_model(model, "CPU", settings)
    own = threading.local()

    def score(pixels: Pixels) -> float:
        if not hasattr(own, "request"):
            own.request = compiled.create_infer_request()
        own.request.infer({"images": pixels})
        return float(own.request.get_tensor("score").data[0])

    return score


def openvino_int8(path: Path, calibration: list[Pixels], products: str) -> Any:
    """Quantise by NNCF."""
    import nncf
    import openvino

    kept = None if products == "all" else nncf.IgnoredScope(types=["MatMul"], validate=False)
    data = nncf.Dataset([{"images": pixels} for pixels in calibration])
    return nncf.quantize(openvino.Core().read_model(path), data, ignored_scope=kept)


def scorers(model: Model, path: Path, calibration: list[Pixels]) -> Iterator[tuple[str, Scorer]]:
    """Make every way that is installed; the first is the detector's own."""
    yield "torch float32", torch_scorer(CalibratedDetector(model).eval())
    yield "onnxruntime float32", onnx_scorer(path)
    for name, products in PRODUCTS.items():
        file = quantize(path, path.with_suffix(f".{name}.onnx"), calibration, products)
        yield f"onnxruntime int8 {name}", onnx_scorer(file)
    file = quantize(path, path.with_suffix(".coarse.onnx"), calibration, ["Conv"], coarse_convolutions(path))
    yield "onnxruntime int8 coarse", onnx_scorer(file)
    if find_spec("openvino") is None or find_spec("nncf") is None:
        return
    import openvino

    whole = openvino.Core().read_model(path)
    yield "openvino float32", openvino_scorer(whole, "f32")
    yield "openvino bfloat16", openvino_scorer(whole, "bf16")
    for name in PRODUCTS:
        yield f"openvino int8 {name}", openvino_scorer(openvino_int8(path, calibration, name), "f32")


def compare(ways: dict[str, Scorer], images: list[Pixels], workers: int) -> list[tuple[str, float, float]]:
    """Return images/s and the rank correlation with the first way, for each way: medians over rounds in turn."""
    took: dict[str, list[float]] = {name: [] for name in ways}
    scores: dict[str, list[float]] = {}

    def run(name: str) -> None:
        scores[name] = list(parallel_map(ways[name], images, workers))

    for _ in range(ROUNDS):
        for name in ways:
            took[name].append(seconds(partial(run, name)))
    first = scores[next(iter(ways))]
    return [
        (name, len(images) / statistics.median(took[name]), float(spearmanr(scores[name], first).statistic))
        for name in ways
    ]


def read(paths: list[Path], image_size: int) -> list[Pixels]:
    """Decode images at network size."""
    return [to_tensor(load_image(path, image_size)).numpy() for path in paths]


def measure(data: AnomalySet, count: int, config: DetectorConfig) -> None:
    """Train on `count` normal images and print how fast and how alike all ways score the test images."""
    normal = data.normal[:count]
    with tempfile.TemporaryDirectory() as folder:
        model_path = Path(folder) / "model.safetensors"
        model = training.train(normal, model_path, config, device="cpu", progress=quiet).model
        path = model_path.with_suffix(".onnx")
        export(model_path, path)
        size = model.config.image_size
        ways = dict(scorers(model, path, read(normal[:CALIBRATION], size)))
        images = read([image.path for image in data.test], size)
        print(f"{data.name}: {len(images)} images at {size} px, model of {len(normal)} normal images")
        for workers in (1, 2):
            print(f"{workers} core{'s' * (workers > 1)}")
            rows = compare(ways, images, workers)
            for name, rate, agreement in rows:
                print(f"  {name:32s} {rate:8.1f} images/s  {rate / rows[0][1]:5.2f} x  Spearman {agreement:.4f}")


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="set in MVTec layout")
    parser.add_argument("--normal", type=int, default=200, help="images to train on")
    parser.add_argument("--image-size", type=int, default=DetectorConfig().image_size)
    args = parser.parse_args()
    with mock.patch.dict(os.environ, {FLOAT32_VARIABLE: "1"}):  # as exported files compute
        measure(read_mvtec(args.data), args.normal, DetectorConfig(image_size=args.image_size))


if __name__ == "__main__":
    main()
