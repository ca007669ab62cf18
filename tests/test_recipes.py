"""The shell scripts of docs/recipes.md and the README, run as they stand on files with the worst of names."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from command_server import command_server, write_client
from PIL import Image
from shared_run import texture, with_defect

ROOT = Path(__file__).parents[1]
BLOCKS = dict(re.findall(r"## ([^\n]+)\n(?:(?!## ).)*?```sh\n(.*?)```", (ROOT / "docs/recipes.md").read_text(), re.S))
README_BLOCKS = re.findall(r"(?s)```sh\n(.*?)```", (ROOT / "README.md").read_text("utf-8"))
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the recipes need GNU tools")
NORMALS = 80  # enough for a false discovery rate of 5 % among few files
ODD_NAMES = [
    b"two  words .jpg",
    b"line\nbreak.jpg",
    b"-rf.jpg",
    b"caf\xe9.jpg",
    "café ∎.jpg".encode(),
    b'it\'s "odd".jpg',
    b"tab\tand, comma.jpg",
    b"back\\slash\\n.jpg",
    b"*.jpg",
    b"$(touch hacked).jpg",
    b"deep/two  words .jpg",
]
GOOD_NAMES = [b"plain.png", b"two  fine words.png", b"fine\nbreak.png", b"-f.png", b"f\xefne.png", b"deep/plain.png"]
UNREADABLE = {b"empty \n.png": b"", b"-cut.png": b"\x89PNG\r\n\x1a\nand no more"}
ALL_NAMES = {*ODD_NAMES, *GOOD_NAMES, *UNREADABLE}
SETTINGS = {
    "ANOMALY_TRAIN_IMAGE_SIZE": "64",
    "ANOMALY_TRAIN_PROTOTYPES": "50",
    "ANOMALY_TRAIN_EFFORT": "quick",
    "ANOMALY_DEVICE": "cpu",
}
# `anomaly`, killed after some files each of the first times.
KILLED = """
import os, signal, sys
from pathlib import Path
from anomaly_cli.cli import app
from anomaly_cli.scoring.journal import Journal
tries = Path("tries")
with tries.open("a") as file:
    file.write("try\\n")
if len(tries.read_text().split()) < 3:
    add, added = Journal.add, []
    def mortal(self, row):
        if len(added) == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        add(self, row)
        added.append(row)
    Journal.add = mortal
app(sys.argv[1:], prog_name="anomaly")
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The address of a server; the program `anomaly` that scripts find is its client."""
    folder = tmp_path_factory.mktemp("server")
    with command_server(folder) as address, pytest.MonkeyPatch.context() as patch:
        own = [os.fspath(write_client(address, folder / "programs")), str(Path(sys.executable).parent)]
        patch.setenv("PATH", os.pathsep.join([*own, os.environ["PATH"]]))
        yield address


@pytest.fixture(scope="module")
def model(server: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 80 small images, its folder `normal` beside it."""
    folder = tmp_path_factory.mktemp("recipes")
    rng = np.random.default_rng(1)
    (folder / "normal").mkdir()
    for number in range(NORMALS):
        Image.fromarray(texture(rng, 64, 64)).save(folder / "normal" / f"{number}.png")
    done = shell("anomaly train normal -q", folder)
    assert done.returncode == 0, done.stderr
    return folder / "anomaly.safetensors"


@pytest.fixture
def folder(model: Path, tmp_path: Path) -> Path:
    """`normal`, a model, and `incoming` with odd, good and unreadable files."""
    rng = np.random.default_rng(4)
    (tmp_path / "normal").symlink_to(model.with_name("normal"))
    os.link(model, tmp_path / model.name)
    incoming = tmp_path / "incoming"
    (incoming / "deep").mkdir(parents=True)
    for name in ODD_NAMES:
        Image.fromarray(with_defect(rng, texture(rng, 64, 64))).save(incoming / os.fsdecode(name), quality=95)
    for name in GOOD_NAMES:
        Image.fromarray(texture(rng, 64, 64)).save(incoming / os.fsdecode(name))
    for name, content in UNREADABLE.items():
        (incoming / os.fsdecode(name)).write_bytes(content)
    return tmp_path


def shell(script: str, folder: Path, *programs: Path) -> subprocess.CompletedProcess[bytes]:
    """Run a script as a user would, with these folders of programs in front of the others."""
    path = [*map(os.fspath, programs), os.environ["PATH"]]
    environment = {**os.environ, **SETTINGS, "PATH": os.pathsep.join(path)}
    environment.pop("ANOMALY_MODEL", None)
    return subprocess.run(
        ["/bin/sh", "-eu", "-c", script], cwd=folder, env=environment, capture_output=True, check=False, timeout=120
    )


def recipe(title: str, folder: Path, *programs: Path) -> subprocess.CompletedProcess[bytes]:
    done = shell(BLOCKS[title], folder, *programs)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    return done


def program(folder: Path, name: str, text: str) -> Path:
    """Put a program of a name into a folder of its own."""
    (folder / "programs").mkdir()
    file = folder / "programs" / name
    file.write_text(text)
    file.chmod(0o755)
    return file.parent


def files(folder: Path) -> set[bytes]:
    """Every file below a folder, by its path below it."""
    return {os.fsencode(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def moved(names: list[bytes]) -> set[bytes]:
    """Names of files as `mv --backup=numbered` puts them into one folder."""
    flat = [name.rpartition(b"/")[2] for name in names]
    return {*flat, *(name + b".~1~" for name in flat if flat.count(name) == 2)}


def test_every_script_of_the_page_is_tested() -> None:
    page = (ROOT / "docs/recipes.md").read_text()
    tests = Path(__file__).read_text()

    assert page.count("```sh\n") == len(BLOCKS) == page.count("\n```\n") - page.count("```cron\n")
    assert all(f'recipe("{title}"' in tests for title in BLOCKS)


def test_odd_files_are_moved_aside_and_none_is_lost(folder: Path) -> None:
    recipe("Move anomalies aside", folder)

    assert files(folder / "quarantine") == moved(ODD_NAMES)
    assert files(folder / "incoming") == {*GOOD_NAMES, *UNREADABLE}
    assert not (folder / "hacked").exists()


def test_names_that_begin_with_a_dash_do_no_harm_in_the_folder_itself(folder: Path) -> None:
    *_, last = BLOCKS["Move anomalies aside"].splitlines()
    script = f"anomaly score . -q --model ../anomaly.safetensors --out scores.csv\nmkdir quarantine\n{last}"

    done = shell(script, folder / "incoming")

    assert done.returncode == 0, done.stderr
    assert files(folder / "incoming" / "quarantine") == moved(ODD_NAMES)


def test_clean_files_are_copied_with_their_folders(folder: Path) -> None:
    recipe("Copy the clean files", folder)

    assert files(folder / "clean" / "incoming") == set(GOOD_NAMES)
    assert files(folder / "incoming") == ALL_NAMES


def test_unreadable_files_are_deleted_and_no_other(folder: Path) -> None:
    recipe("Delete unreadable files", folder)

    assert files(folder / "incoming") == {*ODD_NAMES, *GOOD_NAMES}


def test_the_worst_are_drawn(folder: Path) -> None:
    recipe("Draw the most anomalous files", folder)

    drawn = files(folder / "worst" / "incoming")
    assert len(drawn) == 3
    assert {name.removesuffix(b".png") for name in drawn} <= set(ODD_NAMES)


def test_the_regions_are_handed_to_a_labelling_tool(folder: Path) -> None:
    recipe("Hand the regions to a labelling tool", folder)

    document = json.loads((folder / "regions.coco.json").read_bytes())
    named = {os.fsencode(each["file_name"]) for each in document["images"]}
    assert named == {b"incoming/" + name for name in (*ODD_NAMES, *GOOD_NAMES)}
    assert {name.removesuffix(b".png") for name in files(folder / "masks" / "incoming")} == {*ODD_NAMES, *GOOD_NAMES}


def test_files_are_chosen_by_size_and_reason(folder: Path) -> None:
    names = [b"large\n.png", b"-\xff.png"]
    for name in names:
        Image.new("RGB", (80, 64)).save(folder / "incoming" / os.fsdecode(name))

    recipe("Select by any column, without awk or jq", folder)

    assert files(folder / "other-size") == set(names)
    assert files(folder / "incoming") == ALL_NAMES - {b"empty \n.png"}


def test_a_delivery_is_refused(folder: Path) -> None:
    done = recipe("Accept or refuse a delivery", folder)

    assert done.stdout == b"refused, see verdict.json\n"
    assert json.loads((folder / "verdict.json").read_text())["unreadable"] == 2
    assert b"gate tripped: unreadable (2 of 19 files)\n" in done.stderr


def test_a_delivery_is_accepted(folder: Path) -> None:
    for name in ALL_NAMES - set(GOOD_NAMES):
        (folder / "incoming" / os.fsdecode(name)).unlink()

    assert recipe("Accept or refuse a delivery", folder).stdout == b"accepted\n"


def test_a_delivery_that_cannot_be_judged_fails_the_job(folder: Path) -> None:
    (folder / "anomaly.safetensors").unlink()

    done = shell(BLOCKS["Accept or refuse a delivery"], folder)

    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.startswith(b"error: no model file at anomaly.safetensors")


def test_a_live_filter_moves_what_is_odd(folder: Path) -> None:
    # Stands for inotifywait, which may not be installed: names each file as --format and --no-newline ask for.
    watch = program(folder, "inotifywait", "#!/bin/sh\nfor folder; do :; done\nfind $folder -type f -print0\n")

    recipe("Watch a folder", folder, watch)

    assert files(folder / "quarantine") == moved(ODD_NAMES)
    assert files(folder / "incoming") == {*GOOD_NAMES, *UNREADABLE}


def test_a_killed_run_is_started_again_until_it_is_through(folder: Path, server: Path) -> None:
    assert shell("anomaly score incoming -q --out whole.csv", folder).returncode == 0
    mortal = write_client(server, folder / "mortal", KILLED)

    done = recipe("Resume after a kill", folder, mortal)

    assert (folder / "tries").read_text().count("try") == 3
    assert b"resumed: 8 of 19 files were done already\n" in done.stderr
    assert (folder / "scores.csv").read_bytes() == (folder / "whole.csv").read_bytes()


def test_a_run_that_failed_is_not_started_again(folder: Path, server: Path) -> None:
    (folder / "anomaly.safetensors").unlink()
    failing = write_client(server, folder / "mortal", KILLED)

    done = shell(BLOCKS["Resume after a kill"], folder, failing)

    assert done.returncode == 1
    assert (folder / "tries").read_text().count("try") == 1


def test_every_night_only_what_is_new_is_scored_and_no_news_is_silence(folder: Path) -> None:
    for name in ODD_NAMES:
        os.utime(folder / "incoming" / os.fsdecode(name), (0, 0))

    recipe("Nightly runs", folder)

    [table] = folder.glob("scores-*.csv")
    assert len(table.read_bytes().split(b"incoming/")) == 1 + len(GOOD_NAMES) + len(UNREADABLE)


def test_a_night_with_odd_files_says_so_in_one_line_and_one_without_files_nothing(folder: Path) -> None:
    tripped = shell(BLOCKS["Nightly runs"], folder)
    shutil.rmtree(folder / "incoming")
    (folder / "incoming").mkdir()
    quiet = shell(BLOCKS["Nightly runs"], folder)

    assert tripped.returncode == 3
    assert b"gate tripped: flagged (11 of 19 files)\n" in tripped.stderr
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, b"", b"")


def test_the_scripts_of_the_readme_move_the_flagged_files_and_gate(folder: Path) -> None:
    cleaning, gating = README_BLOCKS

    gated = shell(gating, folder)
    cleaned = shell(cleaning, folder)

    assert gated.returncode == 3, gated.stderr
    assert (folder / "verdict.json").exists()
    assert cleaned.returncode == 0, cleaned.stderr
    assert files(folder / "quarantine") == moved(ODD_NAMES)
    assert files(folder / "incoming") == {*GOOD_NAMES, *UNREADABLE}
