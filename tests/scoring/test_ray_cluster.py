"""`score --engine ray`: the same table from a cluster, whatever happens to its workers, and no output of Ray."""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import DEADLINE_S, REACHED, anomaly, rows_of, start
from PIL import Image

from anomaly_cli.config import Engine
from anomaly_cli.errors import ClusterError, ConfigError
from anomaly_cli.scoring import ray_cluster
from anomaly_cli.scoring import score as scoring
from anomaly_cli.scoring.journal import Journal
from anomaly_cli.scoring.ray_cluster import Plan, make_plan
from anomaly_cli.tables.formats import TableFormat
from anomaly_cli.tables.row import Row
from benchmarks.speed.ray_scaling import row_bytes

pytestmark = pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\.")  # Ray warns of its own settings

EAGER = {"RAY_worker_niceness": "0"}  # other tests at the same time would starve workers of Ray's own priority
STORE_BYTES = 80 * 2**20  # the least that Ray takes
BIG = 12  # slow files, so that a run has not ended when its first rows arrive
TABLE, JOURNAL = Path("scores.csv"), Path("scores.csv.journal")


@pytest.fixture(autouse=True, scope="module")
def silence() -> Iterator[None]:
    """Ray reads its environment as it is imported, so that this must come first."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("RAY_AUTH_MODE", "disabled")  # so that other drivers may come without a key
        for name, value in (ray_cluster.SILENCE | EAGER).items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def address(silence: None) -> Iterator[str]:
    """A running cluster of two cores, which this process is a driver of."""
    import ray

    quiet: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.CRITICAL}
    ray.init("local", num_cpus=2, object_store_memory=STORE_BYTES, **quiet)
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


@pytest.fixture
def big(here: Path) -> Path:
    """A folder of images that take a while to read, one of them damaged."""
    folder = here / "big"
    shutil.copytree("incoming", folder)
    pixels = np.random.default_rng(0).integers(0, 256, (2000, 2000, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "big00.png", compress_level=1)
    for number in range(1, BIG):
        os.link(folder / "big00.png", folder / f"big{number:02}.png")
    (folder / "cut.png").write_bytes((folder / "good0.png").read_bytes()[:200])
    return folder


def workers() -> set[int]:
    """Process ids of the workers of the cluster that this process started."""
    parents, named = {}, set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            title, status = (process / "cmdline").read_bytes(), (process / "stat").read_text()
        except OSError:  # it has ended meanwhile
            continue
        parents[int(process.name)] = int(status.rpartition(")")[2].split()[1])
        if title.startswith(b"ray::MapWorker"):
            named.add(int(process.name))
    raylets = {process for process, parent in parents.items() if parent == os.getpid()}
    return {process for process in named if parents[process] in raylets}


def scored(*arguments: str) -> bytes:
    result = anomaly("score", *arguments, "-q", "--out", "-")
    assert (result.stderr, result.exit_code) == ("", 0)
    return result.stdout_bytes


# The same table


def test_a_cluster_writes_the_same_bytes_as_one_machine(here: Path, address: str) -> None:
    shutil.copytree("incoming", "mine")
    shutil.copy("mine/good0.png", os.fsdecode(b"mine/caf\xe9.png"))  # no UTF-8
    Path("mine/words.png").write_text("no picture at all, only words")
    shutil.make_archive("pack", "zip", "mine/deep")
    inputs = ["mine", os.fspath(here / "normal"), "zip://good one.png::pack.zip"]

    table = scored(*inputs, "--engine", "ray")

    assert table == scored(*inputs)
    reasons = {row["path"]: row["reason"] for row in rows_of(table) if row["status"] != "ok"}
    assert reasons["mine/words.png"] == "not an image"
    assert len(reasons) == 3  # with the two of `normal`


def test_workers_that_are_killed_lose_nothing(big: Path, address: str) -> None:
    earlier = workers()  # of another run, which may not have ended yet
    killed: set[int] = set()
    progress: list[tuple[str, int, int]] = []
    later: set[int] = set()

    def kill_both(phase: str, done: int, total: int, /) -> None:
        progress.append((phase, done, total))
        if killed:
            later.update(workers() - killed - earlier)
            return
        killed.update(workers() - earlier)
        for process in killed:
            os.kill(process, signal.SIGKILL)

    model = Path("anomaly.safetensors")
    report = scoring.score([Path("big")], model, engine=Engine.RAY, device="cpu", progress=kill_both)
    scoring.write_scores(report, TABLE, TableFormat.CSV)

    assert len(killed) == 2
    assert later  # others took their place, so there was work left when they died
    total = 9 + BIG + 1
    assert progress == [("scoring", done, total) for done in range(1, total + 1)]
    assert TABLE.read_bytes() == scored("big")


# A run of its own


def test_a_run_starts_a_cluster_where_there_is_none_and_ray_prints_nothing(here: Path) -> None:
    expected = anomaly("score", "incoming", "--out", "-")

    running = start("score", "incoming", "--out", "-", "--engine", "ray", hook=forget_the_address)

    assert running.exit_code() == 0, running.stderr
    assert Path("stdout").read_bytes() == expected.stdout_bytes
    assert running.stderr == expected.stderr


def forget_the_address() -> None:
    """Hook: no cluster is known."""
    os.environ.pop("RAY_ADDRESS", None)
    os.environ.update(EAGER)


def stop_after(rows: int, address: str) -> None:
    """Hook: join a cluster, and wait where so many files are entered in the journal."""
    os.environ.update(RAY_ADDRESS=address, RAY_AUTH_MODE="disabled")
    add, added = Journal.add, list[Row]()

    def slow(self: Journal, row: Row) -> None:
        add(self, row)
        added.append(row)
        if len(added) == rows:
            REACHED.touch()
            time.sleep(DEADLINE_S)

    pytest.MonkeyPatch().setattr(Journal, "add", slow)


def test_an_interrupted_run_is_130_leaves_the_cluster_and_can_be_resumed(big: Path, address: str) -> None:
    running = start("score", "big", "--engine", "ray", "--resume", "-q", hook=partial(stop_after, 3, address))
    running.wait_until_reached()
    running.send(signal.SIGINT)

    assert running.exit_code() == 130
    assert running.stderr == ""
    deadline = time.monotonic() + DEADLINE_S
    while workers():
        assert time.monotonic() < deadline, "workers of a run that ended are still there"
        time.sleep(0.1)
    with closing(sqlite3.connect(JOURNAL)) as database:
        assert database.execute("SELECT count(*) FROM finished").fetchone() == (3,)

    result = anomaly("score", "big", "--engine", "ray", "--resume")

    assert f"resumed: 3 of {9 + BIG + 1} files were done already\n" in result.stderr
    assert TABLE.read_bytes() == scored("big")
    assert not JOURNAL.exists()


# What cannot work


def test_a_worker_with_other_versions_is_refused(here: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_cluster, "library_versions", lambda: {"torch": "0"})

    result = anomaly("score", "incoming/good0.png", "--engine", "ray", "-q")

    assert re.fullmatch(
        r"error: Ray gave up: \S+ has \{'python': .*\}, the command has \{'torch': '0'\}\n", result.stderr
    )
    assert (result.stdout, result.exit_code) == ("", 1)


def test_an_address_where_nobody_answers_is_one_line(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setattr("ray.is_initialized", lambda: False)

    result = anomaly("score", "incoming", "--engine", "ray", "-q")

    assert result.stderr == (
        "error: no Ray cluster answers at RAY_ADDRESS=127.0.0.1:1; start it, or set RAY_ADDRESS=local to use this "
        "machine alone\n"
    )
    assert (result.stdout, result.exit_code) == ("", 1)


def test_without_the_extra_the_error_names_it(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_cluster, "find_spec", lambda name: None)

    with pytest.raises(ClusterError, match=r"^--engine ray needs Ray Data: pip install 'anomaly-cli\[distributed\]'$"):
        ray_cluster.check_engine("auto")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--stream",), "--stream scores on this machine as names arrive, it does not go with --engine ray"),
        (("--device", "cuda:1"), "--engine ray deals out the GPUs itself: --device auto, cpu or cuda, not cuda:1"),
    ],
)
def test_what_only_one_machine_can_do_is_refused(here: Path, options: tuple[str, ...], message: str) -> None:
    result = anomaly("score", "incoming", "--engine", "ray", *options)

    assert result.stderr == f"error: {message}\n"
    assert (result.stdout, result.exit_code) == ("", 2)


# How a cluster is divided


@pytest.mark.parametrize(
    ("resources", "device", "expected"),
    [
        ({"CPU": 64.0, "memory": 1e12}, "auto", Plan(64, 1, 0, "cpu")),
        ({"CPU": 64.0, "GPU": 8.0}, "auto", Plan(8, 8, 1, "cuda")),
        ({"CPU": 64.0, "GPU": 8.0}, "cpu", Plan(64, 1, 0, "cpu")),
        ({"CPU": 2.0, "GPU": 4.0}, "cuda", Plan(4, 1, 1, "cuda")),
    ],
)
def test_there_is_one_worker_per_gpu_or_else_per_core(resources: dict[str, float], device: str, expected: Plan) -> None:
    assert make_plan(resources, device) == expected


@pytest.mark.parametrize(("files", "workers", "size"), [(1, 64, 1), (40, 2, 5), (10_000_000, 1024, ray_cluster.BATCH)])
def test_batches_are_small_enough_to_keep_every_worker_busy(files: int, workers: int, size: int) -> None:
    assert ray_cluster.batch_size(files, workers) == size


def test_the_benchmark_counts_the_memory_of_rows() -> None:
    short, long = (row_bytes([Row(path="x" * length, status="unreadable")] * 10) for length in (10, 1010))

    assert long - short == pytest.approx(1000, abs=100)


def test_gpus_that_the_cluster_has_not_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"^device cuda is not available in the Ray cluster; use auto or cpu$"):
        make_plan({"CPU": 64.0}, "cuda")
