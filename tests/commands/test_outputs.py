"""Outputs never destroy anything: an input, another output or a file of another kind is refused before any work."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from command_line import anomaly
from shared_run import SETTINGS
from typer.testing import Result

from anomaly_cli.outputs import Kind, Output, check_outputs, is_of_kind

IMAGE = "incoming/good0.png"


@pytest.fixture
def own(here: Path) -> Path:
    """The folder `here` with copies of images that may be destroyed, and one file of every kind."""
    for name in ("a.png", "b.png"):
        shutil.copy(IMAGE, name)
    Path("t.csv").write_text("path,score,flagged\na.png,0.5,false\n")
    shutil.copy("t.csv", "t.jsonl")
    Path("v.json").write_text('{"files": 1, "smallest_p": 0.1}\n')
    Path("labels.csv").write_text("path,label\na.png,normal\n")
    Path("list").write_text("a.png\n")
    return here


def refused(result: Result, message: str) -> None:
    assert (result.stderr, result.stdout, result.exit_code) == (f"error: {message}\n", "", 2)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("arguments", "output", "kind"),
    [
        ("score -o a.png b.png", "--out a.png", "a table of anomaly"),
        ("score b.png -o labels.csv", "--out labels.csv", "a table of anomaly"),
        ("score b.png --summary t.csv", "--summary t.csv", "a summary of score"),
        ("score b.png --stream -o t.jsonl", "--out t.jsonl", "a table in JSON Lines"),
        ("train -m a.png b.png", "--model a.png", "a model"),
        ("train normal -m t.csv", "--model t.csv", "a model"),
        ("train normal --audit-normals a.png", "--audit-normals a.png", "a table of anomaly"),
        ("update anomaly.safetensors normal -o v.json", "--out v.json", "a model"),
        ("audit normal -o v.json", "--out v.json", "a table of anomaly"),
        ("report t.csv -o a.png", "--out a.png", "a review page"),
        ("evaluate t.csv --labels labels.csv -o v.json", "--out v.json", "a result of evaluate"),
        ("evaluate t.csv --labels labels.csv --curves a.png", "--curves a.png", "a picture made by anomaly"),
        ("prototypes -o a.png", "--out a.png", "a picture made by anomaly"),
        ("export -o t.csv", "--out t.csv", "an exported model"),
    ],
)
def test_a_file_of_another_kind_is_not_replaced(own: Path, arguments: str, output: str, kind: str) -> None:
    before = contents(own)

    name = output.partition(" ")[2]
    message = f"{output} exists and is not {kind}: remove {name} first, or name another file"
    refused(anomaly(*arguments.split()), message)

    assert contents(own) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("score -o a.png a.png", "--out a.png is an input of this run: name another file"),
        ("score -o ./a.png incoming a.png", "--out a.png is an input of this run: name another file"),
        ("score b.png -o anomaly.safetensors", "--out anomaly.safetensors is an input of this run: name another file"),
        ("score --files-from list -o list", "--out list is an input of this run: name another file"),
        ("report t.csv -o t.csv", "--out t.csv is an input of this run: name another file"),
        (
            "evaluate t.csv --labels labels.csv -o labels.csv",
            "--out labels.csv is an input of this run: name another file",
        ),
        ("score b.png -o t.csv --summary t.csv", "--out and --summary are one file, t.csv: name two"),
        ("score b.png -o n.csv --summary N.csv", "--out and --summary are one file, N.csv: name two"),
        ("train normal -m n.st --audit-normals n.st", "--model and --audit-normals are one file, n.st: name two"),
    ],
)
def test_an_output_is_no_input_and_no_other_output(own: Path, arguments: str, message: str) -> None:
    before = contents(own)

    refused(anomaly(*arguments.split()), message)

    assert contents(own) == before


def test_links_to_an_input_are_seen_through(own: Path) -> None:
    Path("soft.csv").symlink_to("a.png")
    os.link("a.png", "hard.csv")

    for name in ("soft.csv", "hard.csv"):
        refused(anomaly("score", "a.png", "-o", name), f"--out {name} is an input of this run: name another file")


def test_an_overlay_never_replaces_an_image(own: Path) -> None:
    shutil.copy(IMAGE, "a.png.png")
    before = contents(own)

    result = anomaly("heatmap", "a.png", "b.png", "-o", ".")

    refused(
        result,
        "--out a.png.png exists and is not a picture made by anomaly: remove a.png.png first, or name another file",
    )
    assert contents(own) == before


def test_every_command_replaces_what_it_wrote_itself(own: Path) -> None:
    Path("labels.csv").write_text(f"path,label\n{IMAGE},normal\nincoming/bad0.jpg,bad\n")
    Path("empty.csv").touch()
    shutil.copy("anomaly.safetensors", "m.safetensors")
    runs = [
        f"score {IMAGE} incoming/bad0.jpg -o t.csv --summary v.json",
        f"score {IMAGE} -o empty.csv",
        f"score {IMAGE} -o lines --stream",
        f"score {IMAGE} -o t.json.gz",
        f"score {IMAGE} -o t.parquet",
        "heatmap incoming/bad0.jpg",
        "report t.csv",
        "evaluate t.csv --labels labels.csv -o e.json --curves c.svg",
        "prototypes",
        "update m.safetensors normal",
    ]

    for run in [*runs, *runs]:
        result = anomaly(*run.split(), "-q")
        assert (result.exit_code, result.stderr) == (0, ""), run

    assert len(Path("lines").read_text().splitlines()) == 2
    assert json.loads(Path("v.json").read_text())["files"] == 2


def test_a_model_is_trained_over_the_old_one(own: Path) -> None:
    shutil.copy("anomaly.safetensors", "m.safetensors")

    assert anomaly("train", "normal", *SETTINGS, "-q", "-m", "m.safetensors").exit_code == 0


def test_devices_and_pipes_are_written_as_they_are() -> None:
    null = Path(os.devnull)

    check_outputs([Output("--out", null, Kind.TABLE), Output("--summary", null, Kind.VERDICT)])


@pytest.mark.parametrize(
    "content",
    [
        b"rank,path,score,flagged\n",
        b"\xef\xbb\xbfpath;score;flagged\r\n",
        "path\tscore\tflagged\n".encode("utf-16"),
        b'{"path": "a", "score": 1, "flagged": true}\n',
        b'[\n{"path": "a", "score": 1, "flagged": true}\n]\n',
    ],
)
def test_tables_are_recognised_however_they_were_saved(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "t").write_bytes(content)

    assert is_of_kind(tmp_path / "t", Kind.TABLE)


@pytest.mark.parametrize(
    "content", [b"path,label\n", b"path of a file\nscore\nflagged\n", b"\x89PNG\r\n", b"\x1f\x8b\x00"]
)
def test_other_files_are_no_tables(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "t").write_bytes(content)

    assert not is_of_kind(tmp_path / "t", Kind.TABLE)
