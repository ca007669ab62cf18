"""Score on several machines by Ray Data: batches of paths are sent out, rows come back in any order.

Ray is kept silent: it must not write to stdout or stderr, start a dashboard or send usage statistics.
"""

from __future__ import annotations

import logging
import os
import platform
import re
import signal
import socket
import threading
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from anomaly_cli.config import DEFAULT_REGIONS, RegionRule
from anomaly_cli.detector.checkpoint import library_versions, parse_model, read_content
from anomaly_cli.errors import ClusterError, ConfigError
from anomaly_cli.paths import RemotePath, path_of
from anomaly_cli.scoring.measure import Scorer, choose_roi
from anomaly_cli.scoring.parallel import worker_count
from anomaly_cli.scoring.rows import measure_rows
from anomaly_cli.tables.row import Row

if TYPE_CHECKING:
    import pyarrow as pa
    from ray import ObjectRef


BATCH = 128  # files; if a worker is killed, its batch is measured again
SHARE = 4  # at least so many batches per worker, where there are enough files, so that the load stays balanced
PATIENCE_S = 10.0  # for a cluster to answer
STORE_BYTES = 2**27  # of shared memory besides the model, for paths and rows on their way
SILENCE = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # of the part in C++, which writes to stderr by itself
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # of messages to the driver, which come on stdout: all
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # the coming default; without it Ray warns of the change
}


class Plan(NamedTuple):
    """The workers of a run: how many, the cores and GPUs of each, and their device."""

    workers: int
    cores: int
    gpus: int
    device: str


@dataclass(frozen=True)
class _Job:
    """What a worker must know besides the model.

    Attributes:
        folder: current folder of the command, which relative paths start from.
        relative: whether there are any.
        versions: of the command; a worker must have the same.
    """

    model_path: Path
    folder: Path
    relative: bool
    plan: Plan
    roi: Path | None
    with_quality: bool
    region_rule: RegionRule
    versions: dict[str, str]


def check_engine(device: str) -> None:
    """Refuse what cannot work before anything is listed or loaded.

    Raises:
        ClusterError: Ray Data is not installed.
        ConfigError: the device is one that only a single machine has.
    """
    if find_spec("ray") is None or find_spec("pyarrow") is None:
        raise ClusterError("--engine ray needs Ray Data: pip install 'anomaly-cli[distributed]'")
    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"--engine ray deals out the GPUs itself: --device auto, cpu or cuda, not {device}")


def measure_on_cluster(
    paths: list[Path],
    model_path: Path,
    device: str,
    *,
    roi: Path | None = None,
    with_quality: bool,
    region_rule: RegionRule = DEFAULT_REGIONS,
) -> Generator[Row]:
    """Measure files on all machines of the cluster that is there, else on all cores of this one.

    Args:
        paths: files that every machine can read: on a shared file system, or URLs.
        model_path: read here only; its bytes travel to the workers.
        device: `auto` (GPUs where the cluster has some), `cpu` or `cuda`.
        roi: region of interest as of `--roi`, which every machine can read, too.
        with_quality: whether to measure the quality, too.
        region_rule: what rows are to hold of the regions.

    Yields:
        One row per file, as they are finished. A worker that dies is replaced, and its batch measured again.

    Raises:
        ClusterError: no cluster answers, a worker cannot start, or none makes any progress.
    """
    if not paths:
        return
    content = read_content(model_path)
    with _connected(STORE_BYTES + 2 * len(content)) as resources:
        plan = make_plan(resources, device)
        read = [*paths, *([] if roi is None else [roi])]
        relative = any(not isinstance(path, RemotePath) and not path.is_absolute() for path in read)
        job = _Job(model_path, Path.cwd(), relative, plan, roi, with_quality, region_rule, library_versions())
        yield from _run(paths, content, job)


def make_plan(resources: Mapping[str, float], device: str) -> Plan:
    """Divide a cluster: one worker per GPU where GPUs are to be used, else one per core.

    Args:
        resources: of the whole cluster, as `ray.cluster_resources()` names them.
        device: `auto`, `cpu` or `cuda`.

    Raises:
        ConfigError: GPUs are asked for and there is none.
    """
    cores, gpus = max(1, int(resources.get("CPU", 0))), int(resources.get("GPU", 0))
    if device == "cuda" and not gpus:
        raise ConfigError("device cuda is not available in the Ray cluster; use auto or cpu")
    if gpus and device != "cpu":
        return Plan(gpus, max(1, cores // gpus), 1, "cuda")
    return Plan(cores, 1, 0, "cpu")


def batch_size(files: int, workers: int) -> int:
    """Choose how many files a worker gets at a time."""
    return max(1, min(BATCH, files // (workers * SHARE)))


@contextmanager
def _connected(store_bytes: int) -> Iterator[Mapping[str, float]]:
    """Join the cluster that RAY_ADDRESS or `ray start` names, else start one here; yield its resources.

    A program that has Ray running keeps it.
    """
    for name, value in SILENCE.items():
        os.environ.setdefault(name, value)
    import ray
    import ray.data

    for handler in logging.getLogger("ray.data").handlers[:]:
        if isinstance(handler, logging.StreamHandler):  # its files stay
            logging.getLogger("ray.data").removeHandler(handler)
    ray.data.DataContext.get_current().enable_progress_bars = False
    if ray.is_initialized():
        yield ray.cluster_resources()
        return
    with _process_kept():
        _join_or_start(store_bytes)
    try:
        yield ray.cluster_resources()
    finally:
        ray.shutdown()


def _join_or_start(store_bytes: int) -> None:
    import ray

    address = os.environ.get("RAY_ADDRESS", "")
    if not _answers(address):  # Ray itself would retry for minutes
        raise ClusterError(_no_cluster(f"RAY_ADDRESS={address}"))
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    try:
        ray.init(num_cpus=worker_count(), object_store_memory=store_bytes, include_dashboard=False, **quiet)
        return
    except ValueError:  # a cluster is there; its size is not for us to say
        pass
    try:
        ray.init(**quiet)
    except (ConnectionError, ValueError, RuntimeError) as error:
        where = f"RAY_ADDRESS={address}" if address else "the address of the last `ray start`"
        raise ClusterError(_no_cluster(where)) from error


def _no_cluster(where: str) -> str:
    return f"no Ray cluster answers at {where}; start it, or set RAY_ADDRESS=local to use this machine alone"


def _answers(address: str) -> bool:
    """Whether a server listens at `host:port` or `ray://host:port`; any other form is left to Ray."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not host or not port.isdecimal():
        return True
    try:
        with socket.create_connection((host, int(port)), PATIENCE_S):
            return True
    except (OSError, OverflowError):
        return False


@contextmanager
def _process_kept() -> Iterator[None]:
    """Keep Ray, while it starts, from stderr and from what SIGTERM does.

    Its part in C++ says there which level of silence it was given.
    """
    before, stderr, nowhere = signal.getsignal(signal.SIGTERM), os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _run(paths: list[Path], content: bytes, job: _Job) -> Generator[Row]:
    import ray
    from ray.data import ActorPoolStrategy

    plan = job.plan
    batches = -(-len(paths) // batch_size(len(paths), plan.workers))
    names = [{"path": os.fsencode(path)} for path in paths]  # as bytes, since names need not be UTF-8
    rows = ray.data.from_items(names, override_num_blocks=batches).map_batches(
        _Worker,
        fn_constructor_args=(ray.put(content), job),
        batch_size=None,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=min(plan.workers, batches)),
        num_cpus=plan.cores,
        num_gpus=plan.gpus,
    )
    try:
        done: Iterable[pa.Table] = rows.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
        for block in done:
            yield from map(Row.from_json, block["row"].to_pylist())
    except Exception as error:  # of a worker as it starts, or of Ray; a worker that dies is none
        raise ClusterError(f"Ray gave up: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """Reduce an error to one line; that of a worker is the last line, below the worker's traceback."""
    from ray.exceptions import RayError

    first, *others = str(error).strip().splitlines() or [type(error).__name__]
    last = [first, *others][-1]
    return re.sub(r"^[\w.]+Error: ", "", last) if isinstance(error, RayError) else first


class _Worker:
    """A worker: it loads the model once and measures one batch of files after another."""

    def __init__(self, content: ObjectRef[bytes], job: _Job) -> None:
        import ray

        if (versions := library_versions()) != job.versions:
            raise ClusterError(f"{platform.node()} has {versions}, the command has {job.versions}")
        if job.folder.is_dir():
            os.chdir(job.folder)
        elif job.relative:
            raise ClusterError(f"{platform.node()} has no folder {job.folder}: give absolute paths or URLs")
        device = torch.device(job.plan.device)
        model = parse_model(ray.get(content), job.model_path, device)
        roi = choose_roi(model, job.roi)
        self._scorer = Scorer(
            model,
            [device],
            roi=roi,
            with_quality=job.with_quality,
            workers=job.plan.cores,
            region_rule=job.region_rule,
        )

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Turn a column of paths, as bytes, into a column of rows, as JSON."""
        import pyarrow as pa

        paths = [path_of(os.fsdecode(name)) for name in batch["path"].to_pylist()]
        return pa.table({"row": [row.to_json() for row in measure_rows(paths, self._scorer)]})
