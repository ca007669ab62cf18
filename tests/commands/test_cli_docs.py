"""docs/cli.md says what the code says."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import typer
from typer.core import TyperGroup, TyperOption

from anomaly_cli.cli import app

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def generated() -> str:
    return str(runpy.run_path(str(DOCS / "generate_cli.py"))["page"]())


def test_the_reference_of_the_command_line_is_what_the_code_says(generated: str) -> None:
    written = (DOCS / "cli.md").read_text("utf-8")

    assert written == generated, "docs/cli.md is out of date: run `make docs`"


def test_the_reference_depends_on_neither_the_terminal_nor_the_environment(
    generated: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"COLUMNS": "30", "TERM": "dumb", "NO_COLOR": "1", "ANOMALY_MODEL": "x", "LANG": "C"}.items():
        monkeypatch.setenv(name, value)

    assert runpy.run_path(str(DOCS / "generate_cli.py"))["page"]() == generated


def test_every_command_and_option_is_in_the_reference(generated: str) -> None:
    root = typer.main.get_command(app)
    assert isinstance(root, TyperGroup)

    for name, command in root.commands.items():
        section = generated.split(f"\n## `anomaly {name}`\n")[1].split("\n## ")[0]
        for option in command.params:
            if isinstance(option, TyperOption):
                assert f"* `{', '.join(sorted(option.opts, key=len))}" in section
                assert option.help
                assert option.help.replace("*", r"\*") in section


def test_file_patterns_are_no_emphasis(generated: str) -> None:
    assert r"'\*.png' by name, 'cam1/\*\*' by path" in generated
