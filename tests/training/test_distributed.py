"""Several processes train one model: what two gloo processes compute is what one computes."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import FEW_DEFECTS, REACHED, Running, anomaly, rows_of, start
from safetensors.torch import load_file
from shared_run import SETTINGS, Trained
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from anomaly_cli.config import Effort
from anomaly_cli.detector.backbones.build import build_backbone
from anomaly_cli.detector.checkpoint import read_header
from anomaly_cli.detector.turn_prediction import StageOne
from anomaly_cli.errors import ConfigError
from anomaly_cli.statistics.image_metrics import image_metrics
from anomaly_cli.training import stage1, training_set
from anomaly_cli.training.distributed import SINGLE_PROCESS, Processes, local_device, process_group, share_statistics
from anomaly_cli.training.stage1 import draw_batch
from benchmarks.speed import processes as benchmark

CROP = 32  # pixels
ANOMALIES = 3  # among the sixteen images of a batch
STEPS, IMAGES = 10, 8  # of stage 1, and images in each of them
MARGIN = 0.02  # by which the image AUROC of two processes may be lower
DEADLINE_S = 120.0

SMALL = f"""
from anomaly_cli.cli import app
from anomaly_cli.training import stage2, views
stage2.SYNTHETIC_DEFECTS = {FEW_DEFECTS}
views.FEW_NORMALS = 0
app(prog_name="anomaly")
"""

Hook = Callable[[int, int], None]  # rank and port


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("localhost", 0))
        port: int = listening.getsockname()[1]
        return port


def become(rank: int, port: int, count: int = 2) -> None:
    """Hook: be one of the processes that torchrun starts."""
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(port),
    }


def in_two_processes(function: Callable[[Processes], object], folder: Path) -> list[dict[str, Tensor]]:
    """Call a function in two processes that have joined; what each returns."""
    server = multiprocessing.get_context("forkserver")
    port = free_port()
    running = [server.Process(target=_call, args=(function, rank, port, folder)) for rank in range(2)]
    for process in running:
        process.start()
    for process in running:
        process.join(DEADLINE_S)
        assert process.exitcode == 0
    return [torch.load(folder / str(rank), weights_only=True) for rank in range(2)]


def _call(function: Callable[[Processes], object], rank: int, port: int, folder: Path) -> None:
    become(rank, port)
    with process_group() as processes:
        torch.save(function(processes), folder / str(rank))


# One loss


def images() -> list[np.ndarray]:
    return [np.random.default_rng(i).integers(0, 255, (70, 80, 3), np.uint8) for i in range(20)]


def gradients(processes: Processes) -> dict[str, Tensor]:
    """Loss, gradients and running statistics of one step from random weights, in double precision."""
    learner = StageOne(build_backbone("scratch", seed=1), processes.all_gather_rows)
    share_statistics(learner.backbone, processes)
    learner.double().train()
    views, chosen = draw_batch(images(), CROP, (0, 0), processes)
    normal = torch.arange(len(chosen)) >= ANOMALIES
    several = processes.count > 1
    loss_of = DistributedDataParallel(learner) if several else learner
    loss = loss_of(views.double(), normal)
    loss.backward()
    found = {name: each.grad for name, each in learner.named_parameters() if each.grad is not None}
    return {"loss": loss.detach(), **found, **dict(learner.named_buffers())}


def test_two_processes_have_the_loss_gradients_and_statistics_of_one(tmp_path: Path) -> None:
    one = gradients(SINGLE_PROCESS)

    for two in in_two_processes(gradients, tmp_path):
        assert set(two) == set(one)
        for name, value in one.items():
            torch.testing.assert_close(two[name], value, rtol=1e-7, atol=1e-10, msg=name)
    assert {"backbone.network.stem.conv.weight", "backbone.turn_head.weight", "labelled_head.weight"} <= set(one)


@pytest.mark.parametrize("count", [2, 3, 16, 20])
def test_the_shares_of_all_processes_make_up_the_batch(count: int) -> None:
    shares = [draw_batch(images(), 64, (3, 5), Processes(rank, count)) for rank in range(count)]

    n = len(shares[0][0]) // 2
    assert n * count >= 16 > (n - 1) * count
    for views, chosen in shares:
        assert len(views) == 2 * n
        assert torch.equal(chosen, shares[0][1])
    if n * count == 16:
        views, chosen = draw_batch(images(), 64, (3, 5), SINGLE_PROCESS)
        assert torch.equal(chosen, shares[0][1])
        for kind in (0, 1):
            joined_views = torch.cat([share[kind * n : (kind + 1) * n] for share, _ in shares])
            assert torch.equal(joined_views, views[kind * 16 : (kind + 1) * 16])


# Sharing work


def exchange(processes: Processes) -> dict[str, Tensor]:
    own = [f"{item} by {processes.rank}" for item in processes.share(["a", "b", "c"])]
    assert processes.join(own) == ["a by 0", "b by 1", "c by 0"]
    assert processes.broadcast({"rank": processes.rank}) == {"rank": 0}
    rows = torch.full((2, 1), float(processes.rank + 1), requires_grad=True)
    everybody = processes.all_gather_rows(rows)
    (everybody * torch.tensor([[1.0], [2.0], [3.0], [4.0]])).sum().backward()
    assert rows.grad is not None
    return {"rows": everybody.detach().flatten(), "gradient": rows.grad.flatten()}


def test_results_and_rows_come_back_in_order_with_the_gradients_of_all(tmp_path: Path) -> None:
    first, second = in_two_processes(exchange, tmp_path)

    assert first["rows"].tolist() == second["rows"].tolist() == [1, 1, 2, 2]
    assert first["gradient"].tolist() == [2, 4]  # each of two processes has a loss with the weights 1 and 2
    assert second["gradient"].tolist() == [6, 8]


def test_a_process_alone_keeps_what_it_has() -> None:
    rows = torch.ones(2, 3)

    assert SINGLE_PROCESS.share([1, 2]) == SINGLE_PROCESS.join([1, 2]) == [1, 2]
    assert SINGLE_PROCESS.broadcast("a") == "a"
    assert SINGLE_PROCESS.all_gather_rows(rows) is rows


# The command


def image_auroc(model: str) -> float:
    """Image AUROC on the images that come in."""
    result = anomaly("score", "incoming", "--model", model, "--out", "-", "-q")
    assert result.exit_code == 0, result.stderr
    scores = {row["path"]: float(row["score"]) for row in rows_of(result.stdout_bytes)}
    anomalous = np.array(["bad" in path for path in scores])
    return image_metrics(anomalous, list(scores.values())).image_auroc


def test_two_processes_of_torchrun_write_the_model_of_one(here: Path, trained: Trained) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    Path("small.py").write_text(SMALL)
    arguments = ["small.py", "train", "normal", *SETTINGS, "--model", "two.safetensors", "--resume"]

    result = subprocess.run([*torchrun, *arguments], capture_output=True, text=True)

    assert result.returncode == 0, result.stderr
    assert result.stdout == ""
    assert result.stderr.count("saved two.safetensors; next: anomaly score DIR --out scores.csv\n") == 1
    assert sorted(path.name for path in here.glob("two*")) == ["two.safetensors"]
    one, two = (load_file(path) for path in (trained.model, here / "two.safetensors"))
    assert set(one) == set(two)
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    headers = [read_header(path) for path in (trained.model, here / "two.safetensors")]
    for header in headers:
        del header["provenance"]["created"]
    assert headers[0] == headers[1]


def few_steps(rank: int, port: int) -> None:
    become(rank, port)
    few_and_small(pytest.MonkeyPatch())


def few_and_small(patch: pytest.MonkeyPatch) -> None:
    """Make stage 1 short."""
    patch.setitem(stage1.SCRATCH_STEPS, Effort.QUICK, STEPS)
    patch.setattr(stage1, "BATCH_SIZE", IMAGES)


def wait_while_reading(rank: int, port: int) -> None:
    """Hook: wait to be killed once the first image is read."""
    become(rank, port)

    def wait(*_: object, **__: object) -> None:
        REACHED.touch()
        signal.pause()

    # Every process reads sizes; of the few images that are learned from, the first process takes all.
    pytest.MonkeyPatch().setattr(training_set, "load_image", wait)


def start_two(folder: Path, hooks: tuple[Hook, Hook], *options: str) -> tuple[Running, Running]:
    """Train in two processes, each with a current folder of its own."""
    port = free_port()
    running = []
    for rank, hook in enumerate(hooks):
        (folder / str(rank)).mkdir()
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder / str(rank))
            arguments = ("train", "../normal", "--model", "../two.safetensors", *SETTINGS, *options)
            running.append(start(*arguments, hook=partial(hook, rank, port)))
    return running[0], running[1]


def test_two_processes_rank_as_well_as_one(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few_and_small(monkeypatch)
    several = start_two(here, (few_steps, few_steps), "--backbone", "scratch")

    alone = anomaly("train", "normal", *SETTINGS, "--backbone", "scratch", "--model", "one.safetensors")

    assert alone.exit_code == 0, alone.stderr
    assert [process.exit_code() for process in several] == [0, 0]
    assert several[1].stderr == ""
    assert image_auroc("two.safetensors") >= image_auroc("one.safetensors") - MARGIN


def test_a_process_that_is_killed_ends_the_other_with_one_line_and_no_model(here: Path) -> None:
    first, second = start_two(here, (become, wait_while_reading))
    second.wait_until_reached()

    second.send(signal.SIGKILL)

    assert first.exit_code() == 1
    assert first.stderr.splitlines()[-1] == "error: another process of this run ended before the work was done"
    assert "Traceback" not in first.stderr
    assert not (here / "two.safetensors").exists()


# The environment


def test_a_world_without_an_address_is_refused(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")

    result = anomaly("train", "normal", "--model", "two.safetensors")

    assert result.exit_code == 2
    assert result.stderr == "error: WORLD_SIZE=2, but RANK is not set: start the processes with torchrun\n"


def test_each_process_takes_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert local_device("cuda:0") == "cuda:0"

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")

    assert [local_device(name) for name in ("auto", "cuda", "cpu")] == ["cuda:1", "cuda:1", "cpu"]
    with pytest.raises(ConfigError) as raised:
        local_device("cuda:0")
    assert str(raised.value) == "device cuda:0 is one GPU for 2 processes; use auto, cuda or cpu"


# The benchmark


def test_the_benchmark_prints_a_line_for_each_run(
    trained: Trained, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def copied(count: int, _normal: str, *options: str) -> benchmark.Cost:
        shutil.copy(trained.model, options[-1])
        return benchmark.Cost(10.0 / count, 12.0)

    monkeypatch.setattr(benchmark, "train", copied)
    monkeypatch.setattr(benchmark, "LABELLED", 2)
    monkeypatch.setattr(sys, "argv", ["processes", "--seeds", "4"])

    benchmark.main()

    _, one, two = capsys.readouterr().out.splitlines()
    assert 0 <= float(one.split()[2]) == float(two.split()[2]) <= 1
    assert [line.split()[:2] + line.split()[3:] for line in (one, two)] == [
        ["1", "4", "10", "12"],
        ["2", "4", "5", "12"],
    ]
