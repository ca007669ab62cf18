"""Prototype memories: Hopfield retrieval, its nearest-prototype limit, whitening and coreset selection."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from anomaly_cli.packed_resnet import prefers_bfloat16

QUERY_CHUNK = 4096  # cells compared with all prototypes at once; bounds memory use
PROJECTION_WIDTH = 64  # Johnson-Lindenstrauss width for coreset distances; more changed nothing on the benchmark
CORESET_POOL = 256  # farthest cells that the next prototypes are looked for among
FIT_CHUNK = 2**22  # values; a covariance is summed over so many at once
SHRINKAGE = 1e-3  # enough to keep a whitening finite


class Whitening(nn.Module):
    """Affine map that gives normal embeddings zero mean and unit covariance (shrunk towards a sphere)."""

    mean: Tensor
    matrix: Tensor

    def __init__(self, mean: Tensor, matrix: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("matrix", matrix)

    @classmethod
    def fit(cls, cells: Tensor, floor: float = SHRINKAGE) -> Whitening:
        """Estimate mean and covariance from normal cells.

        The covariance is shrunk towards its mean eigenvalue by the analytic amount of Ledoit and Wolf (2004),
        which matters when there are fewer cells than channels, as for the one pooled cell of each image.

        Args:
            cells: (M, D) float32, M ≥ 2.
            floor: added to every eigenvalue, as a share of their mean: how much less than the others the directions
                count in which normal cells hardly vary.
        """
        M, D = cells.shape
        mean = cells.mean(0)
        products, fourth = torch.zeros(()), torch.zeros(())
        for chunk in cells.split(max(1, FIT_CHUNK // D)):
            centred = (chunk - mean).double()
            products = products + centred.T @ centred
            fourth = fourth + centred.square().sum(1).square().sum()
        covariance = products / M
        share = _ledoit_wolf_shrinkage(covariance, fourth, M)
        scale = covariance.diagonal().mean().clamp(min=1e-12)
        values, vectors = torch.linalg.eigh(covariance * (1 - share))
        spread = values.clamp(min=0) + (share + floor) * scale
        # In row order, as a model file gives it back: the product then has the same bits before and after.
        return cls(mean, (vectors / spread.sqrt()).float().contiguous())

    def forward(self, cells: Tensor) -> Tensor:
        """Whiten (..., D) cells."""
        return (cells - self.mean) @ self.matrix


def _ledoit_wolf_shrinkage(covariance: Tensor, fourth: Tensor, M: int) -> float:
    """Optimal share of the spherical target, Ledoit & Wolf 2004, equation 14.

    Args:
        covariance: (D, D) of M cells.
        fourth: () sum of the fourth powers of their lengths, once centred.
        M: how many cells.
    """
    D = len(covariance)
    scale = covariance.diagonal().mean()
    distance = covariance.square().sum() / D - scale.square()
    if distance <= 0:
        return 0.0
    noise = (fourth / M - covariance.square().sum()) / (M * D)
    return float((noise / distance).clamp(0, 1))


def similarities(queries: Tensor, prototypes: Tensor) -> Tensor:
    """Compute q·m − ½‖m‖² for (M, D) queries and (K, D) prototypes: (M, K), −½‖q − m‖² up to a constant of q."""
    return torch.addmm(-0.5 * prototypes.square().sum(1), queries, prototypes.T)


def hopfield_retrieve(queries: Tensor, prototypes: Tensor, beta: float) -> Tensor:
    """Retrieve softmax(β · similarity) M for (M, D) queries; differentiable in queries and prototypes."""
    return torch.softmax(beta * similarities(queries, prototypes), dim=1) @ prototypes


def nearest_prototype(queries: Tensor, prototypes: Tensor, columns: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Find the nearest of (K, D) prototypes to each of (M, D) queries: (M,) Euclidean distances and (M,) indices.

    Where the processor is faster with bfloat16 the search may take one that is up to 0.4 % farther away, or farther by
    the rounding of the vectors where it is very near; the distance to the one it takes is exact.

    Args:
        queries: (M, D).
        prototypes: (K, D).
        columns: what `search_columns` made of the prototypes, so that it need not be made again.
    """
    indices = most_similar(queries, prototypes, columns)
    return torch.linalg.vector_norm(queries - prototypes[indices], dim=1), indices


def most_similar(queries: Tensor, prototypes: Tensor, columns: Tensor | None = None) -> Tensor:
    """Find the (M,) indices alone that `nearest_prototype` gives."""
    # A graph for images of any size cannot tell how many chunks there will be.
    chunks = [queries] if torch.compiler.is_compiling() else queries.split(QUERY_CHUNK)
    if not _searches_bfloat16(queries):
        return torch.cat([similarities(chunk, prototypes).max(dim=1).indices for chunk in chunks])
    columns = search_columns(prototypes) if columns is None else columns
    ones = torch.ones(1, 2, dtype=torch.bfloat16)
    found = []
    for chunk in chunks:
        rows = torch.cat([chunk.bfloat16(), ones.expand(len(chunk), 2), _half_norms(chunk)], dim=1)
        # −½‖q − m‖² itself and not up to a constant of q: rounding is then relative to the distance. As none is much
        # above zero, the largest has the smallest bits, which NumPy finds seven times faster than torch the largest
        # bfloat16.
        found.append((rows @ columns).view(torch.uint16).numpy().argmin(axis=1))
    return torch.from_numpy(np.concatenate(found))


def _searches_bfloat16(queries: Tensor) -> bool:
    return queries.device.type == "cpu" and not torch.compiler.is_compiling() and prefers_bfloat16()


def search_columns(prototypes: Tensor) -> Tensor:
    """Lay (K, D) prototypes out for the search in bfloat16: (D + 4, K)."""
    ones = torch.ones(1, 2, dtype=torch.bfloat16).expand(len(prototypes), 2)
    return torch.cat([prototypes.bfloat16(), _half_norms(prototypes), ones], dim=1).T.contiguous()


def _half_norms(vectors: Tensor) -> Tensor:
    """Split −½‖v‖² of (M, D) vectors into two bfloat16 numbers whose sum has 16 bits: (M, 2)."""
    norms = -0.5 * vectors.square().sum(1)
    high = norms.bfloat16()
    return torch.stack([high, (norms - high.float()).bfloat16()], dim=1)


class PrototypeMemory(nn.Module):
    """All prototypes of one scale: a modern Hopfield memory (Ramsauer et al. 2020, equation 3).

    Similarity is −½‖q − m‖², which for prototypes of equal length is the inner product of the paper; so the
    retrieval of infinite β is the nearest prototype in the Euclidean sense.
    """

    prototypes: Tensor

    def __init__(self, prototypes: Tensor, chosen: Tensor | None = None) -> None:
        """Keep (K, D) float32 prototypes, K ≥ 1.

        Args:
            prototypes: the patterns.
            chosen: (K,) which of its candidates each of them was; no part of a saved model.
        """
        super().__init__()
        self.register_buffer("prototypes", prototypes)
        self.chosen = torch.arange(len(prototypes)) if chosen is None else chosen
        self._columns: tuple[Tensor, Tensor] | None = None  # the prototypes they were made of, and they

    @classmethod
    def choose(cls, candidates: Tensor, count: int, generator: torch.Generator) -> PrototypeMemory:
        """Make a memory of `count` of the (M, D) candidates: their coreset."""
        chosen = select_coreset(candidates, count, generator)
        return cls(candidates[chosen.to(candidates.device)], chosen)

    def similarities(self, queries: Tensor) -> Tensor:
        """Compute q·m − ½‖m‖² for (M, D) queries: (M, K)."""
        return similarities(queries, self.prototypes)

    def retrieve(self, queries: Tensor, beta: float) -> Tensor:
        """Retrieve softmax(β · similarity) M for each query.

        Args:
            queries: (M, D).
            beta: inverse temperature, > 0; `float("inf")` gives the nearest prototype.

        Returns:
            (M, D) retrieved patterns, differentiable in queries and prototypes where β is finite.
        """
        if beta == float("inf"):
            return self.prototypes[self.nearest(queries)[1]]
        return hopfield_retrieve(queries, self.prototypes, beta)

    def nearest(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Find the nearest prototype of each query.

        Args:
            queries: (M, D).

        Returns:
            (M,) Euclidean distances and (M,) indices of the prototypes.
        """
        return nearest_prototype(queries, self.prototypes, self._columns_for(queries))

    def _columns_for(self, queries: Tensor) -> Tensor | None:
        if not _searches_bfloat16(queries):
            return None
        if self._columns is None or self._columns[0] is not self.prototypes:
            self._columns = (self.prototypes, search_columns(self.prototypes))
        return self._columns[1]


def select_coreset(cells: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Choose cells that cover all others: greedy k-centre, as PatchCore does (Roth et al. 2022, algorithm 1).

    Distances are measured after a random projection, whose error does not matter for coverage.

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
        nearest[picked.to(cells.device)] = float("-inf")  # or cells that coincide with one would have it chosen again
        if len(chosen) == count:
            return chosen
        picked = _farthest(cells, nearest, count - len(chosen))
        chosen = torch.cat([chosen, picked])


def _farthest(cells: Tensor, nearest: Tensor, at_most: int) -> Tensor:
    """Choose as many next cells as can be told without measuring all cells again.

    Within the pool of the farthest cells distances are kept up to date; as long as the farthest of them is no nearer
    than the pool's nearest was, no cell outside can be farther.

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
