"""The cut of the package: imports point downwards only, modules stay short, the lowest ones stay light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import anomaly_cli

PACKAGE = Path(anomaly_cli.__file__).parent
MAX_LINES = 400
LEVEL_NAMES = [
    "errors scales partial_file standard_streams",
    "config path_patterns remote metrics overlay table calibration regions batch verdict",
    "listing labels curves report_table quality bombs libtiff images thumbnails augment "
    "devices distributed compact_resnet packed_resnet backbone memory known",
    "detector",
    "journal scoring normals contrast held_out patches labelled training checkpoint normal_audit "
    "cluster onnx_graph saved_steps resuming",
    "streaming pipeline drawing auditing updating evidence evaluation prototypes report export",
    "console command_options api",
    "stream_commands table_commands review_commands train_commands score_commands",
    "cli",
]
LEVELS = {name: level for level, names in enumerate(LEVEL_NAMES) for name in names.split()}
COMMANDS = [name for name, level in LEVELS.items() if level == 7]
MODULES = {path.stem: path for path in sorted(PACKAGE.glob("*.py")) if path.stem != "__init__"}
LIGHT = [name for name in MODULES if LEVELS.get(name, 9) <= 1]


def imported_modules(path: Path) -> set[str]:
    """Modules of the package that a file imports anywhere, also inside functions and for type checks."""
    return set(_imports(ast.parse(path.read_text("utf-8"))))


def _imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name.split(".")[1] for name in node.names if name.name.startswith("anomaly_cli."))
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            package, _, module = (node.module or "").partition(".")
            if package == "anomaly_cli":
                yield from [module.split(".")[0]] if module else (name.name for name in node.names)


def test_the_package_is_flat_and_every_module_has_a_level() -> None:
    assert not list(PACKAGE.glob("*/*.py"))
    assert set(MODULES) <= set(LEVELS)


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_downwards_only(name: str) -> None:
    upwards = {other for other in imported_modules(MODULES[name]) if LEVELS[other] > LEVELS[name]}

    assert upwards == set()


def test_modules_of_one_level_import_each_other_in_no_circle() -> None:
    graph = {name: imported_modules(path) for name, path in MODULES.items()}

    # The console names reports of the pipeline for type checks; nothing below knows the console.
    assert len(list(TopologicalSorter(graph).static_order())) == len(MODULES)


def test_only_the_command_line_imports_the_console() -> None:
    importing = {name for name, path in MODULES.items() if "console" in imported_modules(path)}

    assert importing == {"cli", *COMMANDS}


def test_nothing_imports_the_command_line() -> None:
    assert [name for name, path in MODULES.items() if "cli" in imported_modules(path)] == []


def test_only_command_line_and_console_print_or_exit() -> None:
    speaking = set()
    for name, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if called in ("print", "exit", "quit", "sys.exit", "os._exit", "typer.echo", "sys.stderr.write"):
                speaking.add(name)

    assert speaking <= {"cli", "console", *COMMANDS}


@pytest.mark.parametrize("name", MODULES)
def test_a_module_opens_with_what_it_is_for_and_has_at_most_400_lines(name: str) -> None:
    text = MODULES[name].read_text("utf-8")

    assert len(text.splitlines()) <= MAX_LINES
    assert ast.get_docstring(ast.parse(text))


def test_modules_below_the_images_do_not_import_torch() -> None:
    names = ", ".join(f"anomaly_cli.{name}" for name in LIGHT)
    code = f"import sys, {names}; print('torch' in sys.modules)"

    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert result.stdout.strip() == "False"
