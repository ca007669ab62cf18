"""Coreset selection: a subset of normal embeddings that covers the rest (greedy k-centre)."""

from __future__ import annotations

import torch
from torch import Tensor

PROJECTION_WIDTH = 64  # Johnson-Lindenstrauss width for coreset distances; more changed nothing on the benchmark
CORESET_POOL = 256  # farthest cells, among which the next prototypes are searched


def select_coreset(cells: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Choose cells that cover all others: greedy k-centre, as PatchCore does (Roth et al. 2022, algorithm 1).

    Distances are measured after a Gaussian random projection, whose error does not matter for coverage.

    Args:
        cells: (M, D) float32.
        count: how many to choose; all of them when M ≤ count.
        generator: draws the projection and the first cell.

    Returns:
        (min(count, M),) indices into `cells`, in the order they were chosen.
    """
    M, D = cells.shape
    if count >= M:
        return torch.arange(M)
    if D > PROJECTION_WIDTH:
        projection = torch.randn(D, PROJECTION_WIDTH, generator=generator) / PROJECTION_WIDTH**0.5
        cells = cells @ projection.to(cells)
    first = torch.randint(0, M, (1,), generator=generator)
    chosen, nearest = first, torch.full((M,), float("inf")).to(cells)
    lengths = cells.square().sum(1)
    picked = first
    while True:
        centres = cells[picked.to(cells.device)]
        squared = torch.addmm(centres.square().sum(1), cells, centres.T, alpha=-2).amin(dim=1) + lengths
        nearest = torch.minimum(nearest, squared)
        nearest[picked.to(cells.device)] = float("-inf")  # else cells that coincide with it would have it chosen again
        if len(chosen) == count:
            return chosen
        picked = _farthest(cells, nearest, count - len(chosen))
        chosen = torch.cat([chosen, picked])


def _farthest(cells: Tensor, nearest: Tensor, at_most: int) -> Tensor:
    """Choose as many next cells as possible without measuring all cells again.

    Distances are updated within the pool of the farthest cells. As long as the farthest of them is at least as far as
    the nearest of the pool was, no cell outside the pool can be farther.

    Args:
        cells: (M, D).
        nearest: (M,) squared distance of each to the nearest chosen one.
        at_most: how many.

    Returns:
        At least one index, in the order of greedy choice.
    """
    pool = nearest.topk(min(CORESET_POOL, len(cells)))
    members = cells[pool.indices]
    between = torch.cdist(members, members).square().cpu()
    distances, bound = pool.values.cpu(), float(pool.values[-1])
    picked: list[int] = []
    while len(picked) < at_most:
        farthest = int(distances.argmax())
        if picked and (distances[farthest] < bound or distances[farthest] == float("-inf")):
            break
        picked.append(farthest)
        distances = torch.minimum(distances, between[farthest])
        distances[picked] = float("-inf")
    return pool.indices.cpu()[picked]
