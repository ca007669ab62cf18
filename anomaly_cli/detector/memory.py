"""Prototype memories: Hopfield retrieval, its nearest-prototype limit, whitening and coreset selection."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from anomaly_cli.detector.coreset import select_coreset
from anomaly_cli.detector.nearest_prototype import nearest_prototype, search_columns, searches_bfloat16, similarities


def hopfield_retrieve(queries: Tensor, prototypes: Tensor, beta: float) -> Tensor:
    """Retrieve softmax(β · similarity) M for (M, D) queries; differentiable in queries and prototypes."""
    return torch.softmax(beta * similarities(queries, prototypes), dim=1) @ prototypes


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
        if not searches_bfloat16(queries):
            return None
        if self._columns is None or self._columns[0] is not self.prototypes:
            self._columns = (self.prototypes, search_columns(self.prototypes))
        return self._columns[1]
