"""`train --resume`: killed anywhere, it continues, repeats no finished step, and ends with the same bytes."""

from __future__ import annotations

import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import pytest
import torch
from command_line import anomaly, start
from shared_run import SETTINGS, Trained

from anomaly_cli.config import Effort
from anomaly_cli.images import decode
from anomaly_cli.images.decode import LoadedImage
from anomaly_cli.scoring import pixels
from anomaly_cli.training import stage1
from anomaly_cli.training.step_cache import SavedSteps, deserialize, serialize

MODEL = Path("mine.safetensors")
STEPS = Path("mine.safetensors.steps")
FILES = 14  # in the folder `normal`, twelve of which can be read
SAVED_STEPS = 3 + 4 + 3 + 2  # in stage 1, of images read, of images measured, of planted defects
RANDOM_KILLS = 6
EMBEDDED = ("train", "mine", "--model", str(MODEL), *SETTINGS)
SCRATCH = (*EMBEDDED, "--backbone", "scratch")


class StoppedClock:
    @staticmethod
    def now(_zone: object) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC)


def small_steps(patch: pytest.MonkeyPatch) -> None:
    """Save often, learn little, and write the same date into every model."""
    patch.setattr("anomaly_cli.training.run.BLOCK", 4)
    patch.setattr("anomaly_cli.training.stage2.SYNTHETIC_DEFECTS", 8)
    patch.setattr(stage1, "STEPS_BETWEEN_SAVES", 2)
    patch.setattr(stage1, "BATCH_SIZE", 4)
    patch.setitem(stage1.SCRATCH_STEPS, Effort.QUICK, 6)
    patch.setattr("anomaly_cli.training.train.datetime", StoppedClock)


@pytest.fixture
def mine(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work with small steps and a folder whose files may be changed."""
    small_steps(monkeypatch)
    shutil.copytree("normal", "mine")
    return here


@pytest.fixture(scope="module")
def uninterrupted(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The model of a run that nothing stopped; models do not depend on their folder."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    shutil.copytree(trained.folder / "normal", folder / "mine")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("ANOMALY_DEVICE", "cpu")
        small_steps(patch)
        return run_through(*EMBEDDED)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files whose cells were taken, in this process."""
    names: list[str] = []
    load = decode.load_image

    def counted(path: Path, image_size: int, **options: Any) -> LoadedImage:
        if options.get("with_quality"):
            names.append(path.name)
        return load(path, image_size, **options)

    monkeypatch.setattr(pixels, "load_image", counted)
    return names


def die_at_rename(number: int) -> None:
    """Hook: kill this process where a file is complete under its temporary name only."""
    small_steps(pytest.MonkeyPatch())
    torch.set_num_threads(1)
    rename: Callable[[Path, Path], Path] = Path.replace
    renamed: list[Path] = []

    def mortal(self: Path, target: Path) -> Path:
        if len(renamed) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        renamed.append(target)
        return rename(self, target)

    pytest.MonkeyPatch().setattr(Path, "replace", mortal)


def die_within(seconds: float) -> None:
    """Hook: kill this process after so long, wherever it is."""
    small_steps(pytest.MonkeyPatch())
    torch.set_num_threads(1)

    def kill() -> None:
        time.sleep(seconds)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=kill, daemon=True).start()


def interrupt(number: int, command: tuple[str, ...] = EMBEDDED) -> None:
    """Kill a run once so many files were written."""
    assert start(*command, "--resume", "-q", hook=partial(die_at_rename, number)).exit_code() == -signal.SIGKILL


def run_through(*command: str) -> bytes:
    """Run to the end; the model."""
    result = anomaly(*command, "-q")
    assert result.exit_code == 0, result.stderr
    return taken()


def taken() -> bytes:
    assert not STEPS.exists()
    content = MODEL.read_bytes()
    MODEL.unlink()
    return content


# A killed run


def test_a_run_killed_again_and_again_ends_with_the_same_bytes(mine: Path) -> None:
    uninterrupted = run_through(*SCRATCH)
    kills = 0

    while start(*SCRATCH, "--resume", "-q", hook=partial(die_at_rename, 2)).exit_code() == -signal.SIGKILL:
        kills += 1  # each run finishes two steps and dies in the third; the last one has only the model left to write

    assert kills == SAVED_STEPS // 2
    assert taken() == uninterrupted


def test_a_run_killed_at_any_moment_ends_with_the_same_bytes(mine: Path, uninterrupted: bytes) -> None:
    draw = random.Random(0)
    started = time.monotonic()
    assert run_through(*EMBEDDED) == uninterrupted
    duration = time.monotonic() - started

    for _ in range(RANDOM_KILLS):
        start(*EMBEDDED, "--resume", "-q", hook=partial(die_within, draw.uniform(0, duration))).exit_code()
        MODEL.unlink(missing_ok=True)

    assert run_through(*EMBEDDED, "--resume") == uninterrupted


def test_what_is_done_is_not_done_again(mine: Path, read: list[str]) -> None:
    interrupt(2)

    result = anomaly(*EMBEDDED, "--resume")

    assert result.exit_code == 0, result.stderr
    assert len(read) == FILES - 8
    assert "resumed: reading normal images, 8 of 14 were done already\n" in result.stderr
    assert not STEPS.exists()


def test_steps_of_stage_one_are_not_done_again(mine: Path) -> None:
    interrupt(2, SCRATCH)

    result = anomaly(*SCRATCH, "--resume")

    assert "resumed: learning features (stage 1), 4 of 6 were done already\n" in result.stderr


def test_without_the_option_nothing_is_saved_and_what_is_there_stays(mine: Path, read: list[str]) -> None:
    interrupt(2)
    left = {path.name: path.read_bytes() for path in STEPS.iterdir()}

    assert anomaly(*EMBEDDED, "-q").exit_code == 0

    assert len(read) == FILES
    assert {path.name: path.read_bytes() for path in STEPS.iterdir()} == left


# What steps depend on


def test_images_that_were_copied_and_touched_are_the_same_images(mine: Path, read: list[str]) -> None:
    interrupt(2)
    shutil.copytree("mine", "copy")
    shutil.rmtree("mine")
    Path("copy").rename("mine")

    assert anomaly(*EMBEDDED, "--resume", "-q").exit_code == 0

    assert len(read) == FILES - 8


@pytest.mark.parametrize("change", ["content", "file", "setting"])
def test_steps_of_other_images_or_settings_are_given_up_with_a_warning(
    mine: Path, read: list[str], change: str
) -> None:
    interrupt(2)
    command = [*EMBEDDED, "--resume", "-q"]
    if change == "content":
        Path("mine", "00.jpg").write_bytes(Path("mine", "02.jpg").read_bytes())
    elif change == "file":
        Path("mine", "11.png").unlink()
    else:
        command += ["--seed", "1"]

    result = anomaly(*command)

    assert result.exit_code == 0
    assert len(read) == FILES - (change == "file")
    assert result.stderr == (
        f"warning: {STEPS} is of other images, settings, version or machine: starting over, 2 finished steps given up\n"
    )
    assert not STEPS.exists()


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_damaged_step_is_done_again(mine: Path, uninterrupted: bytes, read: list[str], damage: str) -> None:
    interrupt(2)
    step = STEPS / "normals-00000.step"
    content = step.read_bytes()
    step.write_bytes({"cut": content[:-1], "flipped": content[:-1] + bytes([content[-1] ^ 1]), "empty": b""}[damage])

    assert run_through(*EMBEDDED, "--resume") == uninterrupted
    assert len(read) == FILES - 4


# What cannot be resumed


def test_a_folder_with_files_of_somebody_else_is_refused(mine: Path) -> None:
    STEPS.mkdir()
    (STEPS / "first.step").write_text("left foot")

    result = anomaly(*EMBEDDED, "--resume")

    assert result.exit_code == 1
    assert result.stderr == f"error: {STEPS}/first.step is not of `anomaly train --resume`; move it away\n"
    assert (STEPS / "first.step").read_text() == "left foot"


def test_a_file_in_the_place_of_the_folder_is_refused(mine: Path) -> None:
    STEPS.touch()

    result = anomaly(*EMBEDDED, "--resume")

    assert result.exit_code == 1
    assert result.stderr == f"error: cannot write {STEPS}: File exists\n"


def test_two_runs_cannot_share_their_steps(mine: Path) -> None:
    import fcntl

    STEPS.mkdir()
    with (STEPS / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = anomaly(*EMBEDDED, "--resume")

    assert result.exit_code == 1
    assert result.stderr == (
        f"error: another run with --resume has {STEPS}/lock open; wait for it or choose another --model\n"
    )


def test_images_behind_a_url_are_refused(here: Path) -> None:
    result = anomaly("train", "memory://normal", "--resume")

    assert result.exit_code == 2
    assert result.stderr == "error: --resume goes with files of this machine, not with memory://normal\n"


def test_a_run_that_finishes_no_step_leaves_nothing(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> LoadedImage:
        raise KeyboardInterrupt

    monkeypatch.setattr(pixels, "load_image", interrupted)

    assert anomaly(*EMBEDDED, "--resume", "-q").exit_code == 130

    assert not STEPS.exists()


# Files of steps


def test_a_step_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    value = {
        "tensors": [torch.tensor(1.5), torch.arange(6).view(2, 3), torch.zeros(0, 2, dtype=torch.float64)],
        "by number": {0: {"step": torch.tensor(3.0)}, 1: None},
        "plain": (True, 7, 0.1, "ä", [], {}),
    }
    steps = SavedSteps(tmp_path, {"images": "one"})

    steps.save("a", value)

    for again in (steps.load("a"), SavedSteps(tmp_path, {"images": "one"}).load("a"), deserialize(serialize(value))):
        assert str(again) == str(value)
    assert steps.load("b") is None
    assert SavedSteps(tmp_path, {"images": "two"}).load("a") is None


def test_steps_of_the_format_before_are_given_up(tmp_path: Path) -> None:
    (tmp_path / "a.step").write_bytes(b"anomaly training step 1 " + b"0" * 64)

    assert SavedSteps(tmp_path, {"images": "one"}).discarded == 1


def test_reading_a_step_runs_no_code() -> None:
    with pytest.raises(UnpicklingError):
        deserialize(serialize(StoppedClock))


def test_a_network_in_the_order_of_channels_last_comes_back(tmp_path: Path) -> None:
    weights = torch.arange(24.0).view(2, 3, 2, 2).contiguous(memory_format=torch.channels_last)

    assert torch.equal(deserialize(serialize(weights)), weights)
