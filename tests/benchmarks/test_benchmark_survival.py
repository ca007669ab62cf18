"""The benchmarks of damage and kills, each with a few turns only; `test_bombs` has that of malformed images."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

import pytest
from shared_run import Trained

from benchmarks.robustness import kills, model_fuzzing
from benchmarks.robustness.model_fuzzing import MUTATIONS, mutated, same_model, wrong_answers

TURNS = 70


@pytest.fixture(scope="module")
def model(trained: Trained) -> bytes:
    return trained.model.read_bytes()


def test_every_damaged_model_file_is_refused_in_one_line_within_limited_memory(model: bytes, tmp_path: Path) -> None:
    path, reader = tmp_path / "damaged.safetensors", model_fuzzing.Reader()

    for number in range(TURNS):
        kind, content = mutated(model, number, 1)
        path.write_bytes(content)
        assert wrong_answers(reader.answers(path), path, unchanged=same_model(content, model)) == [], (number, kind)
    path.write_bytes(model)
    untouched = reader.answers(path)
    reader.close()

    assert untouched == ["read", "read"]
    assert not model_fuzzing._trap().exists()


def test_the_command_refuses_a_damaged_model_file_with_exit_code_1(model: bytes, tmp_path: Path) -> None:
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(struct.pack("<Q", 2**43) + model[8:])

    assert model_fuzzing.run_command(path) == ""
    path.write_bytes(model)
    assert model_fuzzing.run_command(path).startswith("exit code 0")


def test_mutations_are_seeded_and_of_every_kind(model: bytes) -> None:
    kinds = [mutated(model, number, 0) for number in range(len(MUTATIONS))]

    assert [kind for kind, _ in kinds] == list(MUTATIONS)
    assert kinds == [mutated(model, number, 0) for number in range(len(MUTATIONS))]
    assert not any(same_model(content, model) for kind, content in kinds if kind != "wrong tensor")
    assert same_model(model, model)


def test_answers_that_should_not_be_are_reported() -> None:
    path = Path("/x")
    answers = ["/x is damaged", "read", "CRASH of /x", "damaged", "/x is\ndamaged"]

    assert wrong_answers(answers, path, unchanged=True) == answers[2:]
    assert wrong_answers(answers, path, unchanged=False) == answers[1:]


def test_killed_runs_end_with_the_table_of_a_run_in_peace(here: Path) -> None:
    shutil.copytree("incoming", "mine")
    table = Path("scores.csv")
    arguments = ["score", "mine", "--quiet", "--resume"]
    kills.kill_and_resume(arguments, table, 0, 0, 0)
    whole = table.read_bytes()
    table.unlink()

    killed, _ = kills.kill_and_resume(arguments, table, 2, 4.0, seed=1)

    assert killed == 2
    assert table.read_bytes() == whole
    assert not Path("scores.csv.journal").exists()


def test_a_run_that_fails_by_itself_is_reported(here: Path) -> None:
    with pytest.raises(RuntimeError, match="exit code 1: error: no such file or folder: nowhere"):
        kills.kill_and_resume(["score", "nowhere"], Path("scores.csv"), 0, 0, 0)
