"""Options from the environment: each has a variable, the command line goes first, an error names the variable."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from command_line import anomaly, rows_of
from shared_run import SETTINGS
from typer.core import TyperGroup, TyperOption

from anomaly_cli.cli import app

SHARED = {"--model": "ANOMALY_MODEL", "--device": "ANOMALY_DEVICE"}


def options() -> list[tuple[str, TyperOption]]:
    root = typer.main.get_command(app)
    assert isinstance(root, TyperGroup)
    return [
        (name, option)
        for name, command in root.commands.items()
        for option in command.params
        if isinstance(option, TyperOption)
    ]


@pytest.mark.parametrize(("command", "option"), options())
def test_every_option_has_the_variable_of_its_command_and_name(command: str, option: TyperOption) -> None:
    name = max(option.opts, key=len)
    own = f"ANOMALY_{command}_{name.removeprefix('--')}".upper().replace("-", "_")

    assert (option.envvar or f"ANOMALY_{command}_{option.name}".upper()) == SHARED.get(name, own)


def test_options_are_read_from_the_environment(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANOMALY_SCORE_TOP", "2")
    monkeypatch.setenv("ANOMALY_SCORE_OUT", "-")
    monkeypatch.setenv("ANOMALY_SCORE_FORMAT", "tsv")
    monkeypatch.setenv("ANOMALY_SCORE_QUIET", "1")
    monkeypatch.setenv("ANOMALY_SCORE_INCLUDE", "bad*.jpg deep/*")

    result = anomaly("score", "incoming")

    rows = rows_of(result.stdout_bytes, "\t")
    assert len(rows) == 4
    assert [row["flagged"] for row in rows] == ["true", "true", "false", "false"]
    assert (result.stderr, result.exit_code) == ("", 0)


def test_a_variable_of_one_command_is_not_for_another(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANOMALY_HEATMAP_TOP", "1")
    monkeypatch.setenv("ANOMALY_HEATMAP_QUIET", "1")

    scored = anomaly("score", "incoming", "--top", "3")
    drawn = anomaly("heatmap", "incoming")

    assert "table: scores.csv\n" in scored.stderr
    assert (drawn.stderr, drawn.exit_code) == ("", 0)
    assert sum(row["flagged"] == "true" for row in rows_of(Path("scores.csv").read_bytes())) == 3
    assert len(list(Path("heatmaps").rglob("*.png"))) == 1


def test_the_command_line_goes_before_the_environment_and_empty_is_not_set(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANOMALY_SCORE_TOP", "2")
    monkeypatch.setenv("ANOMALY_SCORE_FDR", "")
    monkeypatch.setenv("ANOMALY_SCORE_QUIET", "0")

    result = anomaly("score", "incoming", "--top", "1")

    assert sum(row["flagged"] == "true" for row in rows_of(Path("scores.csv").read_bytes())) == 1
    assert "table: scores.csv\n" in result.stderr


def test_values_of_a_repeated_option_stand_with_blanks_between_them(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANOMALY_TRAIN_ANOMALIES", "incoming memory://nowhere")

    result = anomaly("train", "normal", *SETTINGS, "-q")

    assert result.stderr == "error: no such file or folder: memory://nowhere\n"


def test_the_model_is_taken_from_its_variable_by_every_command(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANOMALY_MODEL", "elsewhere.safetensors")
    Path("anomaly.safetensors").unlink()

    for arguments in (
        ["train", "normal", *SETTINGS],
        ["score", "incoming"],
        ["heatmap", "incoming"],
        ["report", "scores.csv"],
        ["info"],
    ):
        result = anomaly(*arguments)
        assert result.exit_code == 0, result.stderr

    assert not Path("anomaly.safetensors").exists()


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("FDR", "abc", "Input should be a valid number, unable to parse string as a number"),
        ("TOP", "1.5", "Input should be a valid integer, unable to parse string as an integer"),
        ("FORMAT", "xls", "Value error, 'xls' is not one of 'csv', 'tsv', 'jsonl', 'json', 'parquet'."),
        ("QUIET", "maybe", "Input should be a valid boolean, unable to interpret input"),
    ],
)
def test_a_value_of_the_wrong_kind_is_one_line_that_names_the_variable(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, message: str
) -> None:
    monkeypatch.setenv(f"ANOMALY_SCORE_{variable}", value)

    result = anomaly("score", "incoming")

    assert result.stderr == f"error: ANOMALY_SCORE_{variable}={value}: {message}\n"
    assert (result.stdout, result.exit_code) == ("", 2)


@pytest.mark.parametrize(
    ("variables", "arguments", "message"),
    [
        (
            {"SCORE_FDR": "7"},
            ["score"],
            "--fdr must be between 0 and 1, got 7.0 (set in the environment: ANOMALY_SCORE_FDR)",
        ),
        (
            {"SCORE_FDR": "0.1"},
            ["score", "--top", "3"],
            "give only one of --fdr, --top (set in the environment: ANOMALY_SCORE_FDR)",
        ),
        (
            {"SCORE_FDR": "0.1", "SCORE_TOP": "3", "SCORE_OUT": "x.csv"},
            ["score"],
            "give only one of --fdr, --top (set in the environment: ANOMALY_SCORE_FDR, ANOMALY_SCORE_OUT, "
            "ANOMALY_SCORE_TOP)",
        ),
        (
            {"DEVICE": "toaster"},
            ["score"],
            "device toaster is not available here; use auto or cpu",
        ),
        (
            {"AUDIT_IMAGE_SIZE": "100"},
            ["audit"],
            "image size must be a multiple of 32 from 64 to 1024, got 100 "
            "(set in the environment: ANOMALY_AUDIT_IMAGE_SIZE)",
        ),
        ({"SCORE_NULL": "1"}, ["score"], "-0 goes with --files-from (set in the environment: ANOMALY_SCORE_NULL)"),
    ],
)
def test_a_value_out_of_its_range_is_one_line_that_names_the_variable(
    here: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], arguments: list[str], message: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(f"ANOMALY_{name}", value)

    result = anomaly(*arguments, "incoming")

    assert result.stderr == f"error: {message}\n"
    assert (result.stdout, result.exit_code) == ("", 2)


def test_an_error_about_usage_names_the_variables_that_are_set_and_no_value_of_the_command_line(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANOMALY_SCORE_FDR", "0.1")
    monkeypatch.setenv("ANOMALY_SCORE_TOP", "x")

    given = anomaly("score", "incoming", "--top", "y")
    ranged = anomaly("score", "incoming", "--top", "3", "--fdr", "7")

    assert "ANOMALY_" not in given.stderr
    assert "'--top'" in given.stderr
    assert ranged.stderr == (
        "error: give only one of --fdr, --top (set in the environment: ANOMALY_SCORE_FDR, ANOMALY_SCORE_TOP)\n"
    )
