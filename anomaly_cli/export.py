"""Export a model for programs without torch: one function for the command line; it never prints."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from anomaly_cli.checkpoint import load_model
from anomaly_cli.config import ExportFormat
from anomaly_cli.errors import ConfigError
from anomaly_cli.pipeline import check_writable
from anomaly_cli.table import atomic_output

LIBRARIES = {ExportFormat.ONNX: ("onnx", "onnxscript")}  # of the extra of the format's name


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


def export(model_path: Path, out: Path | None = None, export_format: ExportFormat = ExportFormat.ONNX) -> ExportReport:
    """Write a model in another format, beside itself unless `out` is given.

    Raises:
        ConfigError: a library is missing, or the backbone has no translation.
        CheckpointError: the model cannot be read.
        OutputError: the file cannot be written.
    """
    names = LIBRARIES[export_format]
    if any(find_spec(name) is None for name in names):
        raise ConfigError(f"export needs {' and '.join(names)}: pip install 'anomaly-cli[{export_format}]'")
    target = out or model_path.with_suffix(f".{export_format}")
    check_writable(target)
    model = load_model(model_path)
    from anomaly_cli.onnx_graph import make_onnx

    content = make_onnx(model).SerializeToString()
    with atomic_output(target) as file:
        file.write(content)
    return ExportReport(target, len(content), model.config.image_size)
