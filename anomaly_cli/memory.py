"""Prototype memories: Hopfield retrieval, its nearest-prototype limit, whitening and coreset selection."""

from __future__ import annotations

import torch
from torch import Tensor, nn

QUERY_CHUNK = 4096  # cells compared with all prototypes at once; bounds memory use
PROJECTION_WIDTH = 64  # Johnson-Lindenstrauss width for coreset distances; more changed nothing on the benchmark
SHRINKAGE = 1e-3  # added to every eigenvalue, as a share of their mean


class Whitening(nn.Module):
    """Affine map that gives normal embeddings zero mean and unit covariance (shrunk towards a sphere)."""

    mean: Tensor
    matrix: Tensor

    def __init__(self, mean: Tensor, matrix: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("matrix", matrix)

    @classmethod
    def fit(cls, cells: Tensor) -> Whitening:
        """Estimate mean and covariance from normal cells.

        The covariance is shrunk towards its mean eigenvalue by the analytic amount of Ledoit and Wolf (2004),
        which matters when there are fewer cells than channels, as for the one pooled cell of each image.

        Args:
            cells: (M, D) float32, M ≥ 2.
        """
        M = len(cells)
        mean = cells.mean(0)
        centred = (cells - mean).double()
        covariance = centred.T @ centred / M
        share = _ledoit_wolf_shrinkage(centred, covariance)
        scale = covariance.diagonal().mean().clamp(min=1e-12)
        values, vectors = torch.linalg.eigh(covariance * (1 - share))
        spread = values.clamp(min=0) + (share + SHRINKAGE) * scale
        # In row order, as a model file gives it back: the product then has the same bits before and after.
        return cls(mean, (vectors / spread.sqrt()).float().contiguous())

    def forward(self, cells: Tensor) -> Tensor:
        """Whiten (..., D) cells."""
        return (cells - self.mean) @ self.matrix


def _ledoit_wolf_shrinkage(centred: Tensor, covariance: Tensor) -> float:
    """Optimal share of the spherical target, Ledoit & Wolf 2004, equation 14, for centred (M, D) cells."""
    M, D = centred.shape
    scale = covariance.diagonal().mean()
    distance = covariance.square().sum() / D - scale.square()
    if distance <= 0:
        return 0.0
    noise = (centred.square().sum(1).square().sum() / M - covariance.square().sum()) / (M * D)
    return float((noise / distance).clamp(0, 1))


def similarities(queries: Tensor, prototypes: Tensor) -> Tensor:
    """Compute q·m − ½‖m‖² for (M, D) queries and (K, D) prototypes: (M, K), −½‖q − m‖² up to a constant of q."""
    return torch.addmm(-0.5 * prototypes.square().sum(1), queries, prototypes.T)


def hopfield_retrieve(queries: Tensor, prototypes: Tensor, beta: float) -> Tensor:
    """Retrieve softmax(β · similarity) M for (M, D) queries; differentiable in queries and prototypes."""
    return torch.softmax(beta * similarities(queries, prototypes), dim=1) @ prototypes


def nearest_prototype(queries: Tensor, prototypes: Tensor) -> tuple[Tensor, Tensor]:
    """Find the nearest of (K, D) prototypes to each of (M, D) queries: (M,) Euclidean distances and (M,) indices."""
    distances, indices = [], []
    # A graph for images of any size cannot tell how many chunks there will be.
    for chunk in [queries] if torch.compiler.is_compiling() else queries.split(QUERY_CHUNK):
        best, index = similarities(chunk, prototypes).max(dim=1)
        distances.append((chunk.square().sum(1) - 2 * best).clamp(min=0).sqrt())
        indices.append(index)
    return torch.cat(distances), torch.cat(indices)


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
        return nearest_prototype(queries, self.prototypes)


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
    lengths = cells.square().sum(1)
    chosen = torch.empty(count, dtype=torch.int64)
    chosen[0] = torch.randint(0, M, (1,), generator=generator)
    nearest = torch.full((M,), float("inf")).to(cells)
    for i in range(1, count):
        centre = cells[chosen[i - 1]]
        squared = lengths - 2 * (cells @ centre) + centre.square().sum()
        nearest = torch.minimum(nearest, squared)
        nearest[chosen[i - 1]] = float("-inf")  # or cells that coincide with it would have it chosen again
        chosen[i] = nearest.argmax()
    return chosen
