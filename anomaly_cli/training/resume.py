"""Resume an interrupted training run: what its cached steps depend on, and the folder that keeps them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from safetensors.torch import save

from anomaly_cli.detector.backbones.backbone import Backbone
from anomaly_cli.detector.checkpoint import contiguous_state, library_versions
from anomaly_cli.detector.devices import processor
from anomaly_cli.files import content_of, locked, os_errors_as_output_error
from anomaly_cli.scoring.parallel import parallel_map
from anomaly_cli.training.run import TrainingContext
from anomaly_cli.training.step_cache import SavedSteps

Announce = Callable[[SavedSteps], None]  # called with the steps of an earlier run


@contextmanager
def resumed(
    run: TrainingContext, model: Path, images: Sequence[Sequence[Path]], backbone: Backbone, tell: Announce
) -> Iterator[TrainingContext]:
    """Cache the steps of a run in `<model>.steps`, and remove them once the model is written.

    The folder is locked for the processes of this run; an empty one is removed again.

    Args:
        run: whose settings, images and machine the steps depend on.
        model: file that the run will write.
        images: lists of files that the run reads; their contents matter, not their names or times.
        backbone: with its starting weights.
        tell: called in the first process.

    Raises:
        OutputError: another run has the folder open, or it cannot be written, or holds something else.
    """
    folder = model.with_name(model.name + ".steps")
    if not run.processes.is_first:
        identity: dict[str, Any] = run.processes.broadcast({})  # once the first process has removed stale steps
        yield replace(run, saved=SavedSteps(folder, identity))
        return
    lock = folder / "lock"
    with os_errors_as_output_error(str(folder)):
        folder.mkdir(exist_ok=True)
    with locked(lock, "--model"):
        try:
            identity = _identity(run, images, backbone)
            steps = SavedSteps(folder, identity)
            run.processes.broadcast(identity)
            tell(steps)
            yield replace(run, saved=steps)
            steps.remove()
        finally:
            if list(folder.iterdir()) == [lock]:
                lock.unlink()
                folder.rmdir()


def _identity(run: TrainingContext, images: Sequence[Sequence[Path]], backbone: Backbone) -> dict[str, Any]:
    """Collect all that the steps of a run depend on."""
    return {
        "config": asdict(run.config),
        "roi": None if run.roi is None else run.roi.digest,
        "images": [list(parallel_map(content_of, each, run.workers)) for each in images],
        "weights": hashlib.sha256(save(contiguous_state(backbone))).hexdigest(),
        "processes": run.processes.count,
        "device": str(run.device),
        "processor": processor(),
        **library_versions(*backbone.libraries),
    }
