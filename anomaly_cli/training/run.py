"""Context of a training run: settings, device, processes, cached steps, progress."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

import torch

from anomaly_cli.config import DetectorConfig
from anomaly_cli.images.decode import LoadedImage
from anomaly_cli.images.roi import Roi
from anomaly_cli.scoring.parallel import Progress, parallel_map
from anomaly_cli.scoring.pixels import read_image
from anomaly_cli.training.distributed import SINGLE_PROCESS, Processes
from anomaly_cli.training.step_cache import Steps, deserialize, serialize

BLOCK = 20  # images whose results are saved together

Item = TypeVar("Item")


@dataclass(frozen=True)
class TrainingContext:
    """What every step of a training run shares.

    Attributes:
        config: settings.
        device: of this process.
        workers: threads of this process that read images.
        progress: called after every step.
        processes: that share the work.
        saved: cached steps of this run and of an interrupted one.
        roi: region of interest of the images; None for all of them.
    """

    config: DetectorConfig
    device: torch.device
    workers: int
    progress: Progress
    processes: Processes = SINGLE_PROCESS
    saved: Steps = field(default_factory=Steps)
    roi: Roi | None = None

    def load(self, path: Path, *, with_quality: bool = False, tiled: bool = True) -> LoadedImage:
        """Read an image as the settings say; not `tiled`, at network size only.

        Raises:
            UnreadableImageError: with the reason in a few words.
            ConfigError: its region of interest cannot be used.
        """
        return read_image(path, self.config, self.roi, with_quality=with_quality, tiled=tiled)

    def map_images(
        self, step: str, phase: str, function: Callable[[Item], Any], items: Sequence[Item]
    ) -> Iterator[Any]:
        """Apply a function to the item of each image, in order; all processes share the work and get all results.

        Args:
            step: name under which finished blocks of results are saved; unique in a run.
            phase: name in the progress.
            function: its results are of the kind that `Steps.save` takes.
            items: the same in all processes.
        """
        blocks = [items[i : i + BLOCK] for i in range(0, len(items), BLOCK)]
        own = self._map_blocks(step, phase, function, self.processes.share(list(enumerate(blocks))))
        if self.processes.count == 1:
            yield from chain.from_iterable(own)
        else:  # serialised once: many small tensors take several times as long
            for packed in self.processes.join([serialize(results) for results in own]):
                yield from deserialize(packed)

    def _map_blocks(
        self, step: str, phase: str, function: Callable[[Item], Any], blocks: Sequence[tuple[int, Sequence[Item]]]
    ) -> Iterator[list[Any]]:
        """Apply a function to numbered blocks of items, without those that are saved."""
        saved = {number: self.saved.load(f"{step}-{number:05}") for number, _ in blocks}
        missing = [block for number, block in blocks if saved[number] is None]
        total, done = sum(len(block) for _, block in blocks), 0
        self.saved.note_reuse(phase, sum(len(each) for each in saved.values() if each is not None), total)
        # A large picture at a time, whose tiles are measured in parallel.
        workers = self.workers if self.config.smallest_defect is None else 1
        fresh = parallel_map(function, chain.from_iterable(missing), workers)
        for number, block in blocks:
            results = saved.pop(number)
            if results is None:
                results = []
                for result in islice(fresh, len(block)):
                    results.append(result)
                    self.progress(phase, done + len(results), total)
                self.saved.save(f"{step}-{number:05}", results)
            done += len(block)
            yield results
