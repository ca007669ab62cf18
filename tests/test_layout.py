"""The layout of the package: what each part may import, no circles, light start-up, short files."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import anomaly_cli

PACKAGE = Path(anomaly_cli.__file__).parent
ROOT_FILES = {"errors", "config", "files", "outputs", "paths", "streams"}
MAY_IMPORT: dict[str, set[str]] = {
    **dict.fromkeys(ROOT_FILES, ROOT_FILES),
    "statistics": ROOT_FILES,
    "images": ROOT_FILES,
    "tables": ROOT_FILES,
    "detector": ROOT_FILES | {"statistics", "images.network_size"},
    "scoring": ROOT_FILES | {"statistics", "images", "tables", "detector"},
    "training": ROOT_FILES | {"statistics", "images", "tables", "detector", "scoring"},
    "review": ROOT_FILES | {"statistics", "images", "tables", "detector", "scoring"},
    "commands": ROOT_FILES | {"statistics", "images", "tables", "detector", "scoring", "training", "review"},
    "api": ROOT_FILES | {"statistics", "images", "tables", "detector", "scoring", "training", "review"},
    "cli": ROOT_FILES | {"commands"},
    "__init__": {"api"},
    "__main__": {"cli"},
}
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.name != "__init__.py" or path.parent == PACKAGE
}
LIGHT = [name for name in MODULES if name.split(".")[0] in {*ROOT_FILES, "statistics", "images", "tables", "cli"}]
MAX_LINES, MAX_FUNCTION_LINES = 400, 50


def _imports(path: Path) -> Iterator[str]:
    """Modules of the package that a file imports anywhere, also inside functions and for type checks."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name.partition(".")[2] for name in node.names if name.name.startswith("anomaly_cli."))
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            package, _, module = (node.module or "").partition(".")
            if package == "anomaly_cli":
                yield from (
                    module if module in MODULES else f"{module}.{name.name}".removeprefix(".") for name in node.names
                )


IMPORTS = {name: set(_imports(path)) for name, path in MODULES.items()}


def _part(module: str) -> str:
    return module.split(".")[0]


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_only_what_its_package_may(name: str) -> None:
    own = _part(name)

    others = {module for module in IMPORTS[name] if _part(module) != own}

    assert {module for module in others if not {_part(module), module} & MAY_IMPORT[own]} == set()


def test_modules_import_each_other_in_no_circle() -> None:
    graph = {name: modules - {name} for name, modules in IMPORTS.items()}

    assert len(list(TopologicalSorter(graph).static_order())) == len(MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_a_module_opens_with_what_it_is_for_and_has_at_most_400_lines(name: str) -> None:
    text = MODULES[name].read_text("utf-8")

    assert len(text.splitlines()) <= MAX_LINES
    assert ast.get_docstring(ast.parse(text))


@pytest.mark.parametrize("name", MODULES)
def test_no_function_has_more_than_50_lines(name: str) -> None:
    functions = [
        node for node in ast.walk(ast.parse(MODULES[name].read_text("utf-8"))) if isinstance(node, ast.FunctionDef)
    ]
    lengths = {each.name: (each.end_lineno or 0) - each.lineno + 1 for each in functions}

    assert {function: lines for function, lines in lengths.items() if lines > MAX_FUNCTION_LINES} == {}


def test_no_file_of_tests_has_more_than_400_lines() -> None:
    lengths = {path.name: len(path.read_text("utf-8").splitlines()) for path in Path(__file__).parent.rglob("*.py")}

    assert {name: length for name, length in lengths.items() if length > MAX_LINES} == {}


def test_packages_hold_a_docstring_and_nothing_else() -> None:
    for path in PACKAGE.glob("*/**/__init__.py"):
        assert [type(node) for node in ast.parse(path.read_text("utf-8")).body] == [ast.Expr], path


def test_only_commands_print_or_exit() -> None:
    speaking = set()
    for name, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if called in ("print", "exit", "quit", "sys.exit", "os._exit", "typer.echo", "sys.stderr.write"):
                speaking.add(_part(name))

    assert speaking <= {"cli", "commands"}


def test_what_lies_below_the_detector_and_the_command_line_do_not_import_torch() -> None:
    names = ", ".join(f"anomaly_cli.{name}" for name in LIGHT)
    code = f"import sys, {names}; print('torch' in sys.modules)"

    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert result.stdout.strip() == "False"


def test_the_drawing_in_contributing_is_what_the_packages_import() -> None:
    text = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text("utf-8")
    (drawing,) = re.findall(r"```mermaid\n(.*?)```", text, re.DOTALL)
    drawn = {(one, other) for one, other in re.findall(r"^ *(\w+) --> (\w+)$", drawing, re.MULTILINE)}

    packages = {_part(name) for name in MODULES} - ROOT_FILES - {"__init__", "__main__"}
    imported = {(_part(name), _part(other)) for name, others in IMPORTS.items() for other in others}

    assert drawn == {(one, other) for one, other in imported if one != other and {one, other} <= packages}
