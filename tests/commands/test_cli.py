"""The command line: what it prints where, what it says of its work, and the exit code of its gates."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest
from command_line import (
    anomaly,
    rows_of,
)
from shared_run import NORMALS, Trained

from anomaly_cli.detector.checkpoint import FORMAT
from anomaly_cli.tables.reader import read_paths

IMAGE = Path("incoming", "good0.png")


def flagged_by(table: bytes) -> set[str]:
    return {row["path"] for row in rows_of(table) if row["flagged"] == "true"}


# Training


def test_training_says_what_it_learned_left_out_and_saved(trained: Trained) -> None:
    lines = trained.result.stderr.splitlines()

    assert lines[:6] == [
        "warning: 2 files cannot be read and are left out:",
        "  normal/empty.png: empty file",
        "  normal/words.jpg: not an image",
        f"warning: 1 of the {NORMALS} normal images is an outlier, left out of every memory; "
        "if not normal, remove it and train again:",
        "  normal/02.jpg",
        f"learned normal from {NORMALS} images at 64 px with the embedded backbone",
    ]
    assert re.fullmatch(
        r"prototypes: 50 at stride 4, 50 at stride 8, 50 at stride 16, 11 at image level, 50 at coarse cells", lines[6]
    )
    assert re.fullmatch(r"held-out normal images score [\d.]+ to [\d.]+, median [\d.]+; 1 is .* \(99 %\)", lines[7])
    assert lines[8:] == ["saved anomaly.safetensors; next: anomaly score DIR --out scores.csv"]
    assert trained.result.stdout == ""


def test_a_single_file_left_out_is_counted_in_the_singular_and_of_many_only_some_are_named(here: Path) -> None:
    for name in "abcde":
        Path(f"{name}.png").touch()

    one = anomaly("score", IMAGE, "a.png").stderr
    many = anomaly("score", IMAGE, *(f"{name}.png" for name in "abcde")).stderr

    assert "  unreadable  a.png: empty file\n" in one
    assert "more unreadable" not in one
    assert many.count("  unreadable  ") == 3
    assert "  and 2 more unreadable\n" in many


# Scoring


def test_with_no_option_the_table_is_scores_csv_and_stdout_stays_empty(here: Path) -> None:
    result = anomaly("score", "incoming")

    rows = rows_of(Path("scores.csv").read_bytes())
    assert result.exit_code == 0
    assert result.stdout == ""
    assert {Path(row["path"]).name for row in rows[:3]} == {"bad0.jpg", "bad1.jpg", "bad2.jpg"}
    assert [int(row["rank"]) for row in rows] == list(range(1, 10))
    assert all(float(row["score"]) > 1 for row in rows[:3])
    assert all(float(row["score"]) > 0 for row in rows)
    assert {"incoming/deep/good one.png"} < {row["path"] for row in rows}


def test_the_model_is_found_through_the_environment(here: Path) -> None:
    Path("anomaly.safetensors").rename("elsewhere.safetensors")

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANOMALY_MODEL", "elsewhere.safetensors")
        scored = anomaly("score", IMAGE, "-q")
        told = anomaly("info")

    assert scored.exit_code == 0
    assert told.stdout.startswith(f"model         elsewhere.safetensors, format {FORMAT}\n")


def test_a_dash_puts_the_table_alone_on_stdout_and_everything_else_on_stderr(here: Path) -> None:
    Path("torn.png").write_bytes(IMAGE.read_bytes()[:400])

    result = anomaly("score", "incoming", "torn.png", "--out", "-")
    anomaly("score", "incoming", "torn.png", "--out", "same.csv")

    assert result.stdout_bytes == Path("same.csv").read_bytes()
    assert len(rows_of(result.stdout_bytes)) == 10
    assert rows_of(result.stdout_bytes)[-1]["status"] == "unreadable"
    assert result.stderr.endswith("table: stdout\n")
    assert not Path("-").exists()


def test_every_format_tells_the_same(here: Path) -> None:
    tables = {}
    for format in ("csv", "tsv", "jsonl"):
        tables[format] = anomaly("score", "incoming", "--out", "-", "--format", format, "-q").stdout_bytes

    from_csv = rows_of(tables["csv"])
    from_json = [json.loads(line) for line in tables["jsonl"].splitlines()]
    assert rows_of(tables["tsv"], "\t") == from_csv
    assert [list(record) for record in from_json] == [list(row) for row in from_csv]
    assert [(record["path"], record["score"]) for record in from_json] == [
        (row["path"], float(row["score"])) for row in from_csv
    ]


def test_the_suffix_of_the_output_chooses_the_format(here: Path) -> None:
    pytest.importorskip("pyarrow")

    for name in ("t.csv", "t.tsv", "t.jsonl", "t.parquet"):
        assert anomaly("score", "incoming", "--out", name, "-q").exit_code == 0

    expected = read_paths(Path("t.csv"))
    assert len(expected) == 9
    for name in ("t.tsv", "t.jsonl", "t.parquet"):
        assert read_paths(Path(name)) == expected


def test_names_of_a_list_survive_spaces_emoji_and_bytes_that_are_not_utf8(here: Path) -> None:
    names = [b"two words.png", "🦊.png".encode(), b"caf\xe9.png", b" leading and trailing .png"]
    for name in names:
        shutil.copy(IMAGE, os.fsdecode(name))
    Path("list").write_bytes(b"\n".join(names))  # no newline at the end

    result = anomaly("score", "--files-from", "list", "--out", "-")

    assert {os.fsencode(row["path"]) for row in rows_of(result.stdout_bytes)} == set(names)
    assert r"caf\udce9.png" in result.stderr


def test_a_list_separated_by_nul_may_hold_newlines_in_names_and_adds_to_the_arguments(here: Path) -> None:
    names = [b"two\nlines.png", b"carriage\rreturn.png", b'tab\t"quotes", comma.png', b"caf\xe9.png"]
    for name in names:
        shutil.copy(IMAGE, os.fsdecode(name))

    result = anomaly("score", IMAGE, "--files-from", "-", "-0", "--out", "-", stdin=b"\0".join(names) + b"\0")

    paths = {os.fsencode(row["path"]) for row in rows_of(result.stdout_bytes)}
    assert paths == {*names, os.fsencode(IMAGE)}
    assert r"two\x0alines.png" in result.stderr


@pytest.mark.parametrize("arguments", [["score", "incoming"], ["heatmap", "incoming", "--top", "1"]])
def test_quiet_says_nothing_even_of_unreadable_files(here: Path, arguments: list[str]) -> None:
    Path("empty.png").touch()

    result = anomaly(*arguments, "empty.png", "-q")

    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")


def test_the_summary_counts_warns_of_too_few_normals_and_names_the_worst(here: Path) -> None:
    Path("empty.png").touch()

    result = anomaly("score", "incoming", "empty.png")

    rows = rows_of(Path("scores.csv").read_bytes())
    assert result.stderr.splitlines() == [
        "10 files: 0 flagged (false discovery rate 0.05); 1 unreadable",
        "3 score above the limit of normal: 12 normal images give p-values no smaller than 0.077, too few to be sure "
        "at this rate; to flag them all the same use --threshold 1",
        "too few to judge the batch as a whole: 9 readable images and 12 normal images, 20 of each are needed",
        *(f"  {float(row['score']):8.2f}  {row['path']}" for row in rows[:5]),
        "  unreadable  empty.png: empty file",
        "table: scores.csv",
    ]


def test_a_false_discovery_rate_that_the_normals_can_support_flags_the_anomalies(here: Path) -> None:
    result = anomaly("score", "incoming", "--fdr", "0.3", "--out", "-")

    assert flagged_by(result.stdout_bytes) == {f"incoming/bad{i}.jpg" for i in range(3)}
    assert result.stderr.startswith(
        "9 files: 3 flagged (false discovery rate 0.3); expect about 1 of them to be normal; 0 unreadable\n"
    )


def test_a_threshold_flags_exactly_the_scores_from_there_on(here: Path) -> None:
    rows = rows_of(anomaly("score", "incoming", "--out", "-", "-q").stdout_bytes)
    between = (float(rows[3]["score"]) + float(rows[4]["score"])) / 2

    result = anomaly("score", "incoming", "--out", "-", "--threshold", str(between))

    assert flagged_by(result.stdout_bytes) == {row["path"] for row in rows[:4]}
    assert re.match(
        rf"9 files: 4 flagged \(score ≥ {between:g}\); expect about \d of them to be normal; 0 unreadable\n",
        result.stderr,
    )


def test_the_most_anomalous_can_be_flagged_whatever_their_score(here: Path) -> None:
    rows = rows_of(anomaly("score", "incoming", "--out", "-", "-q").stdout_bytes)

    result = anomaly("score", "incoming", "--out", "-", "--top", "4")

    assert flagged_by(result.stdout_bytes) == {row["path"] for row in rows[:4]}
    assert result.stderr.startswith("9 files: 4 flagged (the 4 most anomalous); expect about ")


def test_flags_can_be_limited_to_as_many_false_alarms_as_are_bearable(here: Path) -> None:
    table = anomaly("score", "incoming", "--out", "-", "-q").stdout_bytes
    by_p_value = {row["path"] for row in rows_of(table) if 9 * float(row["p_value"]) <= 0.7}

    result = anomaly("score", "incoming", "--out", "-", "--max-false-alarms", "0.7")

    assert by_p_value == flagged_by(result.stdout_bytes) == {f"incoming/bad{i}.jpg" for i in range(3)}
    assert result.stderr.startswith("9 files: 3 flagged (at most 0.7 false alarms expected); expect about 1 of them")


def test_the_verdict_goes_to_a_file_or_alone_to_stdout(here: Path) -> None:
    Path("empty.png").touch()

    to_stdout = anomaly("score", "incoming", "empty.png", "--top", "2", "--summary", "-", "-q")
    anomaly("score", "incoming", "empty.png", "--top", "2", "--summary", "verdict.json", "-q")

    verdict = json.loads(to_stdout.stdout)
    worst = rows_of(Path("scores.csv").read_bytes())[0]
    assert Path("verdict.json").read_text() == to_stdout.stdout
    assert {name: verdict[name] for name in ("files", "readable", "unreadable", "flagged", "rule", "drift")} == {
        "files": 10,
        "readable": 9,
        "unreadable": 1,
        "flagged": 2,
        "rule": "--top 2",
        "drift": False,
    }
    assert (verdict["worst_path"], verdict["normal_images"]) == (worst["path"], NORMALS)
    assert verdict["worst_score"] == pytest.approx(float(worst["score"]), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "exit_code"),
    [
        (["--fail-on", "flagged"], 0),
        (["--fail-on", "flagged", "--threshold", "0.1"], 3),
        (["--fail-on", "unreadable"], 3),
        (["--fail-on", "flagged", "--fail-on", "unreadable"], 3),
        (["--fail-on", "unreadable>1"], 0),
        (["--fail-on", "unreadable>49%"], 3),
        (["--fail-on", "unreadable>50%"], 0),
        (["--fail-on", "flagged>0", "--top", "1"], 3),
        (["--fail-on", "flagged>1", "--top", "1"], 0),
        (["--fail-on", "drift"], 0),
    ],
)
def test_a_gate_that_trips_is_exit_code_3_and_the_table_is_there_all_the_same(
    here: Path, options: list[str], exit_code: int
) -> None:
    Path("empty.png").touch()

    result = anomaly("score", IMAGE, "empty.png", *options, "-q")

    assert (result.exit_code, result.stdout) == (exit_code, "")
    assert [line.startswith("gate tripped: ") for line in result.stderr.splitlines()] == [True] * (exit_code == 3)
    assert len(rows_of(Path("scores.csv").read_bytes())) == 2


def test_text_that_a_terminal_cannot_show_is_escaped_and_the_table_keeps_its_bytes(here: Path) -> None:
    shutil.copy(IMAGE, "é.png")

    result = anomaly("score", "é.png", "--threshold", "9", "--out", "-", charset="ascii")

    assert (result.exit_code, rows_of(result.stdout_bytes)[0]["path"]) == (0, "é.png")
    assert r"(score \u2265 9)" in result.stderr
    assert r"\xe9.png" in result.stderr


def test_info_describes_the_model_on_stdout_whatever_its_name_is(here: Path) -> None:
    name = os.fsdecode(b"mod\xe9l\n.safetensors")
    Path("anomaly.safetensors").rename(name)

    result = anomaly("info", name, charset="ascii")

    lines = result.stdout.splitlines()
    assert result.exit_code == 0
    assert lines[0] == rf"model         mod\udce9l\x0a.safetensors, format {FORMAT}"
    assert {
        "on            12 normal images, 0 labelled anomalous",
        "left out      2 unreadable files, 1 outlier",
        "settings      backbone embedded, image_size 64, prototypes 50, effort quick, seed 0",
        "p-values      no smaller than 0.077",
    } < set(lines)
    assert result.stderr == ""
