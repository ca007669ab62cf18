"""Several processes that train one model, as `torchrun` starts them.

Several processes compute from their shares of a batch what one computes from the whole, up to rounding: statistics and
embeddings are all-reduced, and so are their gradients.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from anomaly_cli.errors import ConfigError, ProcessError

PATIENCE = timedelta(days=1)  # for a process with a slow disk; one that dies closes its connections and is noticed
VARIABLES = ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # besides WORLD_SIZE

Item = TypeVar("Item")


@dataclass(frozen=True)
class Processes:
    """The processes of this run, seen from one of them.

    Attributes:
        rank: of this process; the first, 0, prints and writes.
        count: number of processes.
        local_count: number of processes on this machine.
    """

    rank: int = 0
    count: int = 1
    local_count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process prints and writes."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """Choose the items that this process works on."""
        return items[self.rank :: self.count]

    def join(self, results: list[Item]) -> list[Item]:
        """Gather the results of every process for its `share`, in the order of all items."""
        if self.count == 1:
            return results
        shares: list[Any] = [None] * self.count
        dist.all_gather_object(shares, results)
        return [shares[i % self.count][i // self.count] for i in range(sum(map(len, shares)))]

    def broadcast(self, value: Item) -> Item:
        """Return the value of the first process in all processes."""
        if self.count == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def all_gather_rows(self, rows: Tensor) -> Tensor:
        """Concatenate the (B, D) rows of all processes in the order of ranks, B equal in all: (count · B, D).

        Differentiable: the gradient of a row is the sum of those of all processes.
        """
        if self.count == 1:
            return rows
        placed = [rows if rank == self.rank else torch.zeros_like(rows) for rank in range(self.count)]
        gathered: Tensor = _Sum.apply(torch.cat(placed))
        return gathered


SINGLE_PROCESS = Processes()


class _Sum(torch.autograd.Function):
    """All-reduce of a tensor, also of its gradient: the loss is the sum of the losses of all processes."""

    @staticmethod
    def forward(_context: Any, value: Tensor) -> Tensor:
        return _summed(value)

    @staticmethod
    def backward(_context: Any, *gradients: Tensor) -> Tensor:
        return _summed(gradients[0])


def _summed(value: Tensor) -> Tensor:
    total = value.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total


class SharedBatchNorm(nn.BatchNorm2d):
    """Batch normalisation by the statistics of all processes, which torch offers on GPUs only."""

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, norm: nn.BatchNorm2d, processes: Processes) -> None:
        """Copy parameters and statistics of `norm`.

        Args:
            norm: with a fixed momentum.
            processes: with the same number and size of images each.
        """
        super().__init__(norm.num_features, norm.eps, norm.momentum)
        self.load_state_dict(norm.state_dict())
        self._processes = processes.count

    def forward(self, maps: Tensor) -> Tensor:
        """Normalise (N, C, h, w), in training over the N images of each process."""
        if not self.training:
            return super().forward(maps)
        maps = maps.to(torch.promote_types(maps.dtype, torch.float32))  # not bfloat16
        variance, mean = torch.var_mean(maps, (0, 2, 3), correction=0, keepdim=True)  # (1, C, 1, 1), of this process
        own_mean, mean = mean, self._average(mean)
        variance = self._average(variance + (own_mean - mean).square())
        with torch.no_grad():
            count = self._processes * maps.numel() // maps.shape[1]
            momentum = self.momentum or 0.0
            self.running_mean.lerp_(mean.flatten(), momentum)
            self.running_var.lerp_(variance.flatten() * count / (count - 1), momentum)
            self.num_batches_tracked.add_(1)
        factor = self.weight.view_as(mean) / (variance + self.eps).sqrt()
        return torch.addcmul(self.bias.view_as(mean) - mean * factor, maps, factor)

    def _average(self, value: Tensor) -> Tensor:
        average: Tensor = _Sum.apply(value) / self._processes
        return average


def share_statistics(network: nn.Module, processes: Processes) -> None:
    """Replace every batch normalisation of a network by one over the images of all processes."""
    if processes.count == 1:
        return
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.BatchNorm2d:
                setattr(parent, name, SharedBatchNorm(child, processes))


def rank_of_environment() -> int:
    """Rank of this process among those that `torchrun` started; 0 for a single one."""
    return int(os.environ.get("RANK", "0")) if _world_size() > 1 else 0


def local_device(name: str) -> str:
    """Name the device of this process: each of several processes gets a GPU of its own where there are GPUs.

    Raises:
        ConfigError: one GPU is named for several processes.
    """
    if _world_size() == 1 or name == "cpu" or not torch.cuda.is_available():
        return name
    if name not in ("auto", "cuda"):
        raise ConfigError(f"device {name} is one GPU for {_world_size()} processes; use auto, cuda or cpu")
    return f"cuda:{os.environ['LOCAL_RANK']}"


@contextmanager
def process_group() -> Iterator[Processes]:
    """Join the processes that `torchrun` started; without it this one is alone.

    Raises:
        ConfigError: the environment names the number of processes, but not their addresses.
        ProcessError: another process ended before the work was done.
    """
    if _world_size() == 1:
        yield SINGLE_PROCESS
        return
    if missing := [name for name in VARIABLES if name not in os.environ]:
        raise ConfigError(f"WORLD_SIZE={_world_size()}, but {missing[0]} is not set: start the processes with torchrun")
    try:
        # Plain objects are sent through the CPU even where tensors are sent between GPUs.
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
        try:
            processes = Processes(dist.get_rank(), dist.get_world_size(), int(os.environ["LOCAL_WORLD_SIZE"]))
            yield processes
        finally:
            dist.destroy_process_group()
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            raise ProcessError("another process of this run ended before the work was done") from error
        raise


def _world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))
