"""The command line: what the user can fix is one line on stderr, nothing on stdout, and an exit code."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from command_line import (
    anomaly,
)
from shared_run import SETTINGS
from typer.testing import Result

from anomaly_cli.config import MIN_NORMALS
from anomaly_cli.training import fit, training_set

IMAGE = Path("incoming", "good0.png")


def assert_error(result: Result, message: str, exit_code: int = 1) -> None:
    assert result.stderr == f"error: {message}\n"
    assert result.stdout == ""
    assert result.exit_code == exit_code


@pytest.mark.parametrize("command", ["train", "score", "heatmap"])
def test_a_folder_that_does_not_exist_is_named(here: Path, command: str) -> None:
    assert_error(anomaly(command, "nowhere"), "no such file or folder: nowhere")


@pytest.mark.parametrize("command", ["train", "score", "heatmap"])
def test_a_folder_without_images_is_named(here: Path, command: str) -> None:
    Path("empty").mkdir()
    Path("empty", "notes.txt").write_text("nothing to see")

    assert_error(anomaly(command, "empty"), "no image found in empty")


def test_too_few_normal_images_are_counted_with_what_could_not_be_read(here: Path) -> None:
    Path("few").mkdir()
    for i in range(MIN_NORMALS - 1):
        shutil.copy(IMAGE, Path("few", f"{i}.png"))
    Path("few", "9.png").touch()

    result = anomaly("train", "few", *SETTINGS, "-m", "new.safetensors")

    assert_error(
        result,
        "7 readable images (1 cannot be read, first few/9.png: empty file), at least 8 are needed: "
        "each is measured against the others to learn how much they vary",
    )
    assert not Path("new.safetensors").exists()


@pytest.mark.parametrize(("command", "option"), [("train", "--model"), ("score", "--out"), ("score", "--summary")])
def test_an_output_in_a_missing_folder_is_refused(here: Path, command: str, option: str) -> None:
    result = anomaly(command, "normal", option, "nowhere/file")

    assert_error(result, "cannot write nowhere/file: no such folder: nowhere")


@pytest.mark.parametrize(("command", "option"), [("train", "--model"), ("score", "--out")])
def test_an_output_that_is_a_folder_is_refused(here: Path, command: str, option: str) -> None:
    Path("folder").mkdir()

    assert_error(anomaly(command, "normal", option, "folder"), "cannot write folder: it is a folder")


@pytest.mark.parametrize("out", ["file", "file/below"])
def test_heatmaps_below_a_file_are_refused_before_anything_is_read(here: Path, out: str) -> None:
    Path("file").touch()

    result = anomaly("heatmap", "incoming", "--model", "nowhere", "--out", out, "-q")

    assert_error(result, f"cannot write {out}: not a folder: file")


@pytest.mark.parametrize("arguments", [["score", "incoming"], ["heatmap", "incoming"], ["info"]])
def test_a_missing_model_file_says_how_to_make_one(here: Path, arguments: list[str]) -> None:
    Path("anomaly.safetensors").unlink()

    message = "no model file at anomaly.safetensors: make one with `anomaly train NORMAL_DIR`"
    assert_error(anomaly(*arguments), message)


@pytest.mark.parametrize(
    "arguments", [["score", "incoming", "-m", "words"], ["heatmap", "incoming", "-m", "words"], ["info", "words"]]
)
def test_a_file_that_is_no_model_is_named(here: Path, arguments: list[str]) -> None:
    Path("words").write_text("only words, and enough of them to be read as a header of some length")

    assert_error(anomaly(*arguments), "words is not a model file, or was cut short")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--top=0"], "--top must be 1 or more, got 0"),
        (["--max-false-alarms=0"], "--max-false-alarms must be more than 0, got 0.0"),
        (["--threshold=-1"], "--threshold must be 0 or more, got -1.0"),
        (["--fdr=0.1", "--top=3"], "give only one of --fdr, --top"),
        (["--threshold=1", "--max-false-alarms=2"], "give only one of --threshold, --max-false-alarms"),
        (["--out=-", "--summary=-"], "--out - and --summary - cannot both go to stdout"),
        (
            ["--fail-on=flagged>x"],
            "--fail-on must be flagged, unreadable (each also >N or >N%) or drift, got flagged>x",
        ),
        (["--fail-on=drift>1"], "--fail-on must be flagged, unreadable (each also >N or >N%) or drift, got drift>1"),
        (["--fail-on="], "--fail-on must be flagged, unreadable (each also >N or >N%) or drift, got nothing"),
    ],
)
def test_rules_gates_and_outputs_that_make_no_sense_are_wrong_usage(
    here: Path, options: list[str], message: str
) -> None:
    assert_error(anomaly("score", "incoming", *options), message, 2)


@pytest.mark.parametrize("rate", ["0", "1", "-0.1", "nan"])
def test_a_false_discovery_rate_outside_0_and_1_is_wrong_usage(here: Path, rate: str) -> None:
    result = anomaly("score", "incoming", f"--fdr={rate}")

    assert_error(result, f"--fdr must be between 0 and 1, got {float(rate)}", 2)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--image-size=100", "image size must be a multiple of 32 from 64 to 1024, got 100"),
        ("--image-size=32", "image size must be a multiple of 32 from 64 to 1024, got 32"),
        ("--prototypes=7", "prototypes must be from 8 to 100000, got 7"),
        ("--seed=-1", "seed must be from 0 to 2^63 - 1, got -1"),
        (
            "--weights=w.pth",
            "the embedded backbone takes no weights file; name a model of torchvision or timm with --backbone",
        ),
    ],
)
def test_a_setting_out_of_its_range_is_wrong_usage(here: Path, option: str, message: str) -> None:
    assert_error(anomaly("train", "normal", option), message, 2)


def test_an_unknown_backbone_is_wrong_usage(here: Path) -> None:
    result = anomaly("train", "normal", "--backbone=resnet17")

    assert (result.exit_code, result.stdout) == (2, "")
    assert re.fullmatch(r"error: unknown backbone resnet17: use embedded, scratch.* such as dinov2.*\n", result.stderr)


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "mtia"])
@pytest.mark.parametrize("command", ["train", "score", "heatmap"])
def test_a_device_that_is_not_there_is_wrong_usage(here: Path, command: str, device: str) -> None:
    result = anomaly(command, "normal", "--device", device)

    assert_error(result, f"device {device} is not available here; use auto or cpu", 2)


@pytest.mark.parametrize("command", ["score", "heatmap"])
def test_no_input_at_all_is_wrong_usage(here: Path, command: str) -> None:
    assert_error(anomaly(command), "name a folder or file to read, or use --files-from", 2)


@pytest.mark.parametrize("command", ["score", "heatmap"])
def test_nul_separation_without_a_list_is_wrong_usage(here: Path, command: str) -> None:
    assert_error(anomaly(command, "incoming", "-0"), "-0 goes with --files-from", 2)


def test_a_list_without_paths_is_named(here: Path) -> None:
    Path("list.txt").write_text("\n\n")

    assert_error(anomaly("score", "--files-from", "list.txt"), "list.txt lists no path")
    assert_error(anomaly("score", "--files-from", "-", stdin=b""), "stdin lists no path")


def test_a_list_that_cannot_be_read_is_named(here: Path) -> None:
    assert_error(anomaly("score", "--files-from", "gone"), "cannot read gone: No such file or directory")


def test_if_no_file_at_all_can_be_read_that_is_an_error_and_no_table_is_written(here: Path) -> None:
    Path("a.png").touch()
    Path("b.png").write_text("no picture at all, only words")

    result = anomaly("score", "b.png", "a.png")

    assert_error(result, "none of the 2 files can be read, first a.png: empty file")
    assert not Path("scores.csv").exists()


def test_a_table_that_lists_none_of_the_inputs_is_named(here: Path) -> None:
    assert anomaly("score", IMAGE, "-q").exit_code == 0

    result = anomaly("heatmap", "normal", "--scores", "scores.csv")

    assert_error(result, "no image to draw: scores.csv lists none of the inputs")


def test_a_message_stays_one_line_whatever_is_in_a_name(here: Path) -> None:
    result = anomaly("score", "two\nlines\x1b[31m")

    assert_error(result, r"no such file or folder: two\x0alines\x1b[31m")


@pytest.mark.parametrize(
    "arguments",
    [["frobnicate"], ["score", "--top", "x"], ["score", "x", "--format", "xls"], ["heatmap", "x", "--top", "0"]],
)
def test_what_the_parser_refuses_is_wrong_usage_with_nothing_on_stdout(arguments: list[str]) -> None:
    result = anomaly(*arguments)

    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr != ""
    assert "Traceback" not in result.stderr


# Known faults, each to lose its mark when it is mended.


def assert_one_error_line(result: Result, exit_code: int) -> None:
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""
    assert result.exit_code == exit_code


@pytest.mark.parametrize("device", ["meta", "hpu", "privateuseone"])
def test_a_device_that_no_image_can_be_computed_on_is_wrong_usage(here: Path, device: str) -> None:
    assert_one_error_line(anomaly("score", IMAGE, "--device", device), 2)


@pytest.mark.parametrize(("command", "option"), [("train", "--model"), ("score", "--out")])
def test_an_output_with_too_long_a_name_is_one_line(here: Path, command: str, option: str) -> None:
    assert_one_error_line(anomaly(command, "normal", option, "x" * 300), 1)


def test_a_threshold_that_is_no_number_is_wrong_usage(here: Path) -> None:
    assert_one_error_line(anomaly("score", IMAGE, "--threshold", "nan"), 2)


def test_if_no_file_of_a_table_can_be_read_any_more_that_is_an_error(here: Path) -> None:
    shutil.copy(IMAGE, "a.png")
    assert anomaly("score", "a.png", "-q").exit_code == 0
    Path("a.png").unlink()

    assert_one_error_line(anomaly("heatmap", "--scores", "scores.csv"), 1)


def test_the_largest_seed_that_is_allowed_works(here: Path) -> None:
    assert anomaly("train", "normal", *SETTINGS, "--seed", str(2**63 - 1), "-q").exit_code == 0


def test_an_image_that_vanishes_during_training_is_named(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree("normal", "changing")
    sample_cells = training_set.sample_cells

    def sample_then_remove(*arguments: Any) -> Any:
        sampled = sample_cells(*arguments)
        Path("changing", "03.png").unlink()
        return sampled

    monkeypatch.setattr(fit, "sample_cells", sample_then_remove)
    result = anomaly("train", "changing", *SETTINGS, "-q")

    assert_one_error_line(result, 1)
    assert "03.png" in result.stderr
