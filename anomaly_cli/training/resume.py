"""Resume an interrupted training run: what its cached steps depend on, and the folder that keeps them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from anomaly_cli.detector.backbones.backbone import Backbone
from anomaly_cli.detector.checkpoint import library_versions
from anomaly_cli.detector.devices import processor
from anomaly_cli.files import content_of, locked, os_errors_as_output_error
from anomaly_cli.scoring.parallel import parallel_map
from anomaly_cli.training.distributed import Processes
from anomaly_cli.training.run import TrainingContext
from anomaly_cli.training.step_cache import SavedSteps, serialize

Announce = Callable[[SavedSteps], None]  # called with the steps of an earlier run


@contextmanager
def resumed(
    run: TrainingContext, model: Path, images: Sequence[Sequence[Path]], backbone: Backbone, tell: Announce
) -> Iterator[TrainingContext]:
    """Cache the steps of a run in `<model>.steps`, and remove them once the model is written.

    Args:
        run: whose settings, images and machine the steps depend on.
        model: file that the run will write.
        images: lists of files that the run reads; their contents matter, not their names or times.
        backbone: with its starting weights.
        tell: called in the first process.

    Raises:
        OutputError: another run has the folder open, or it cannot be written, or holds something else.
    """

    def identity() -> dict[str, Any]:
        return {
            "config": asdict(run.config),
            "images": [list(parallel_map(content_of, each, run.workers)) for each in images],
            "weights": hashlib.sha256(serialize(backbone.state_dict())).hexdigest(),
            "processes": run.processes.count,
            "device": str(run.device),
            "processor": processor(),
            **library_versions(),
        }

    folder = model.with_name(model.name + ".steps")
    with _opened(folder, identity, run.processes) as steps:
        if run.processes.is_first:
            tell(steps)
        yield replace(run, saved=steps)
        if run.processes.is_first:
            steps.remove()


@contextmanager
def _opened(folder: Path, identity: Callable[[], dict[str, Any]], processes: Processes) -> Iterator[SavedSteps]:
    """Lock a folder for the processes of this run; an empty one is removed again."""
    if not processes.is_first:
        yield SavedSteps(folder, processes.broadcast({}))  # once the first process has removed stale steps
        return
    lock = folder / "lock"
    with os_errors_as_output_error(str(folder)):
        folder.mkdir(exist_ok=True)
    with locked(lock, "--model"):
        try:
            known = identity()
            steps = SavedSteps(folder, known)
            processes.broadcast(known)
            yield steps
        finally:
            if list(folder.iterdir()) == [lock]:
                lock.unlink()
                folder.rmdir()
