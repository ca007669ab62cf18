"""Translate a whole model to ONNX: pixels in, anomaly map and image score out, both in units of the limit of normal."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from anomaly_cli.detector.calibration import SOFTNESS, ScoreScale
from anomaly_cli.detector.checkpoint import Model, load_model
from anomaly_cli.detector.features import scale_features
from anomaly_cli.detector.scales import COPY_SIDES, SHORTEST_SIDE, SMALL_SCALE, TURNED_SCALE
from anomaly_cli.errors import ConfigError
from anomaly_cli.files import atomic_output
from anomaly_cli.images.network_size import landscape_sizes
from anomaly_cli.outputs import CREATOR, Kind, Output, check_outputs

if TYPE_CHECKING:
    import onnx


KEY = "anomaly"  # of the JSON document among the file's metadata
OUTPUTS = ("anomaly_map", "score")
OPSET = 18  # what torch's exporter writes without converting; runtimes know it since 2023
EXAMPLE_STEPS = (4, 6)  # all sides of the examples differ, so that none is confused
EXAMPLE_SIZES = {SMALL_SCALE: (72, 104), TURNED_SCALE: (80, 112)}  # of reduced copies, pixels
# Average pooling by a factor that depends on the size of the image is no ONNX operator. Here each side is multiplied by
# the matrix that averages: row i holds 1 / factor where column // factor is i. The factor is that of `reduction`.
REDUCED_COPY = """
<ir_version: 8, opset_import: ["": %(opset)d]>
%(name)s_copy (float[N, 3, H, W] images) => (float[N, 3, h, w] copy) {
    zero = Constant <value_int: int = 0> ()
    one = Constant <value_int: int = 1> ()
    copy_side = Constant <value_float: float = %(side)d.0> ()
    shortest = Constant <value_int: int = %(shortest)d> ()
    rows_axis = Constant <value_ints: ints = [1]> ()
    sides = Shape <start: int = 2> (images)
    float_sides = Cast <to: int = 1> (sides)
    area = ReduceProd <keepdims: int = 0> (float_sides)
    side = Sqrt (area)
    side_in_copies = Div (side, copy_side)
    rounded = Round (side_in_copies)
    wanted = Cast <to: int = 7> (rounded)
    shorter = ReduceMin <keepdims: int = 0> (sides)
    possible = Div (shorter, shortest)
    at_most = Min (wanted, possible)
    factor = Max (one, at_most)
    float_factor = Cast <to: int = 1> (factor)
    height_1, width_1 = Split <num_outputs: int = 2> (sides)
    height = Squeeze (height_1)
    width = Squeeze (width_1)
    rows = Div (height, factor)
    columns = Div (width, factor)
    row_numbers = Range (zero, rows, one)
    row_column = Unsqueeze (row_numbers, rows_axis)
    pixel_rows = Range (zero, height, one)
    row_of_pixel = Div (pixel_rows, factor)
    row_is_ours = Equal (row_of_pixel, row_column)
    row_ones = Cast <to: int = 1> (row_is_ours)
    row_means = Div (row_ones, float_factor)
    column_numbers = Range (zero, columns, one)
    pixel_columns = Range (zero, width, one)
    column_of_pixel = Div (pixel_columns, factor)
    pixel_column = Unsqueeze (column_of_pixel, rows_axis)
    column_is_ours = Equal (pixel_column, column_numbers)
    column_ones = Cast <to: int = 1> (column_is_ours)
    column_means = Div (column_ones, float_factor)
    low = MatMul (row_means, images)
    copy = MatMul (low, column_means)
}
"""


class CalibratedDetector(nn.Module):
    """What `score` and `heatmap` compute from pixels, calibration included, in float32."""

    location: Tensor
    spread: Tensor
    log_weights: Tensor

    def __init__(self, model: Model) -> None:
        super().__init__()
        calibration = model.calibration
        self.detector = model.detector
        self.map_scale, self.score_unit = model.map_scale, calibration.score_unit
        self.active = calibration.weights.nonzero()[0].tolist()
        self.register_buffer("location", torch.from_numpy(calibration.location[self.active]).float())
        self.register_buffer("spread", torch.from_numpy(calibration.spread[self.active]).float())
        self.register_buffer("log_weights", torch.from_numpy(calibration.weights[self.active]).log().float())

    def forward(self, images: Tensor, copies: dict[str, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Measure images.

        Args:
            images: (N, 3, H, W) float RGB in [0, 1], H and W multiples of `DetectorConfig.size_step`.
            copies: their reduced copies, as of `scale_features`.

        Returns:
            (N, h, w) anomaly maps on the finest grid and (N,) image scores, in units of the limit of normal.
        """
        detector = self.detector
        detection = detector.detect(scale_features(detector.backbone, images, detector.scale_names, copies))
        standard = (detection.deviations[:, self.active].log() - self.location) / self.spread
        joined = SOFTNESS * torch.logsumexp(standard / SOFTNESS + self.log_weights, dim=1)
        return in_unit(detection.anomaly_maps, self.map_scale), in_unit(joined, self.score_unit)


def in_unit(values: Tensor, unit: ScoreScale) -> Tensor:
    """Convert raw values of any shape as `ScoreScale.apply` does."""
    t = (values - unit.median) / (unit.limit - unit.median)
    return torch.where(t >= 0, 0.5 + 0.5 * t, 0.5 * t.clamp(max=0).exp())


def make_onnx(model: Model) -> onnx.ModelProto:
    """Translate a model on the CPU.

    Raises:
        ConfigError: torch cannot translate the backbone.
    """
    copies = [name for name in COPY_SIDES if name in model.detector.scale_names]
    graph = _translated(model, copies)
    for name in copies:
        _compute_copy(graph, name)
    # Without the exporter's own names of derived sizes, such as 4*s30.
    del graph.graph.value_info[:]
    _name_sizes(graph.graph.input[0], ("N", None, "H", "W"))
    _name_sizes(graph.graph.output[0], ("N", "map_h", "map_w"))
    _name_sizes(graph.graph.output[1], ("N",))
    _describe(graph, model)
    return graph


def _translated(model: Model, copies: list[str]) -> onnx.ModelProto:
    """Run torch's exporter for any number of images of any size; the reduced copies are further inputs."""
    N = torch.export.Dim("N", min=1, max=65535)
    rows, columns = (torch.export.Dim(name, min=1, max=1024) for name in ("rows", "columns"))
    step = model.config.size_step
    images = torch.zeros(2, 3, *(step * steps for steps in EXAMPLE_STEPS))
    shapes: dict[str, Any] = {"images": {0: N, 2: step * rows, 3: step * columns}, "copies": {}}
    for name in copies:
        sides = (torch.export.Dim(f"{name}_{side}", min=2 * SHORTEST_SIDE, max=1024) for side in ("rows", "columns"))
        shapes["copies"][name] = {0: N, **dict(zip((2, 3), sides, strict=True))}
    examples = {name: torch.zeros(2, 3, *EXAMPLE_SIZES[name]) for name in copies}
    try:
        # The program first: ONNX's exporter alone falls back to fixed sizes silently where it fails.
        with torch.no_grad():
            program = torch.export.export(
                CalibratedDetector(model).eval(), (images, examples), dynamic_shapes=shapes, strict=False
            )
        translated = torch.onnx.export(
            program,
            input_names=["images", *copies],
            output_names=OUTPUTS,
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    except Exception as error:  # the exporter raises whatever the code of a network causes
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"backbone {model.config.backbone} cannot be translated to ONNX: {reason}") from error
    proto: onnx.ModelProto = cast(torch.onnx.ONNXProgram, translated).model_proto
    return proto


def reduced_copy(name: str) -> onnx.GraphProto:
    """Write `reduced` of the scale's side as a graph from `images` to `copy`."""
    import onnx

    values = {"opset": OPSET, "name": name, "side": COPY_SIDES[name], "shortest": SHORTEST_SIDE}
    return onnx.parser.parse_model(REDUCED_COPY % values).graph


def _compute_copy(graph: onnx.ModelProto, name: str) -> None:
    """Replace the input of a graph that is the copy of this scale by `reduced_copy` of the first input."""
    copy = reduced_copy(name)
    own = {each for node in copy.node for each in (*node.input, *node.output)} - {"images"}
    nodes = list(graph.graph.node)
    for node in copy.node:
        for names in (node.input, node.output):
            names[:] = [name if each == "copy" else f"{name}/{each}" if each in own else each for each in names]
    del graph.graph.node[:]
    graph.graph.node.extend([*copy.node, *nodes])
    inputs = [each for each in graph.graph.input if each.name != name]
    del graph.graph.input[:]
    graph.graph.input.extend(inputs)


def _name_sizes(value: onnx.ValueInfoProto, names: tuple[str | None, ...]) -> None:
    for size, name in zip(value.type.tensor_type.shape.dim, names, strict=True):
        if name is not None:
            size.dim_param = name


def _describe(graph: onnx.ModelProto, model: Model) -> None:
    """Add the description of the model to the file."""
    import onnx

    description = describe(model)
    graph.producer_name, graph.producer_version = CREATOR, description["version"]
    graph.graph.name = KEY
    graph.doc_string = description["usage"]
    onnx.helper.set_model_props(graph, {KEY: json.dumps(description)})


def describe(model: Model) -> dict[str, Any]:
    """Describe the model in the file: inputs, outputs, settings, provenance."""
    size, step = model.config.image_size, model.config.size_step
    landscape = sorted(landscape_sizes(size, step), key=lambda each: abs(each[0] * each[1] - size**2))
    return {
        "version": version("anomaly-cli"),
        "usage": "Feed RGB pixels / 255 as float32 (N, 3, H, W), each image resized to the one of `sizes` whose aspect "
        "ratio is nearest to its own; scores and maps are 1 at the limit of normal.",
        "input": {
            "name": "images",
            "layout": "N, 3, H, W",
            "colours": "RGB",
            "range": [0, 1],
            "resize": "bicubic, antialiased, as of Pillow, aspect ratio kept as nearly as the sizes allow",
            "transparency": "laid on white",
            "orientation": "EXIF applied",
            "multiple_of": step,
            "sizes": [*landscape, *((width, height) for height, width in landscape if height != width)],
        },
        "outputs": {
            "score": "(N,) 0.5 is a typical normal image, 1 the limit of normal; no upper end",
            "anomaly_map": "(N, h, w) in the same unit; cell (0, 0) of h x w equal ones is the upper left",
        },
        "limit": 1.0,
        "normal_scores": [round(value, 6) for value in model.calibration.normal_scores.tolist()],
        "config": asdict(model.config),
        "scales": list(model.detector.scale_names),
        "provenance": asdict(model.provenance),
    }


LIBRARIES = ("onnx", "onnxscript")


@dataclass(frozen=True)
class ExportReport:
    """What `export` wrote.

    Attributes:
        out: the file.
        size: of the file, bytes.
        image_size: as in `DetectorConfig`.
    """

    out: Path
    size: int
    image_size: int


def export(model_path: Path, out: Path | None = None) -> ExportReport:
    """Write a model as an ONNX file, beside itself unless `out` is given.

    Raises:
        ConfigError: a library is missing, the backbone has no translation, or the model has a region of interest.
        CheckpointError: the model cannot be read.
        OutputError: the file cannot be written.
    """
    if any(find_spec(name) is None for name in LIBRARIES):
        raise ConfigError(f"export needs {' and '.join(LIBRARIES)}: pip install 'anomaly-cli[onnx]'")
    target = out or model_path.with_suffix(".onnx")
    check_outputs([Output("--out", target, Kind.ONNX)], [model_path])
    model = load_model(model_path)
    if model.config.roi is not None:
        raise ConfigError(f"{model_path} inspects a region of interest (--roi), which an ONNX file cannot: use score")
    if model.config.smallest_defect is not None:
        raise ConfigError(
            f"{model_path} reads images in tiles (--smallest-defect), which an ONNX file cannot: use score"
        )
    content = make_onnx(model).SerializeToString()
    with atomic_output(target) as file:
        file.write(content)
    return ExportReport(target, len(content), model.config.image_size)
