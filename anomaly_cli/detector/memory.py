"""Prototype memories: the nearest prototype, which is the limit β → ∞ of Hopfield retrieval.

A modern Hopfield network (Ramsauer et al. 2020, equation 3) retrieves softmax(β · similarity) M for a query. Its limit
β → ∞ is the nearest prototype, and the distance to it the anomaly. Similarity is −½‖q − m‖² up to a constant of q,
which for prototypes of equal length is the inner product of the paper.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from anomaly_cli.detector.coreset import select_coreset
from anomaly_cli.detector.nearest_prototype import nearest_prototype, search_columns, searches_bfloat16


class PrototypeMemory(nn.Module):
    """All prototypes of one scale, and the search of the nearest."""

    prototypes: Tensor

    def __init__(self, prototypes: Tensor, chosen: Tensor | None = None) -> None:
        """Keep (K, D) float32 prototypes, K ≥ 1.

        Args:
            prototypes: the patterns.
            chosen: (K,) index of each among its candidates; not saved.
        """
        super().__init__()
        self.register_buffer("prototypes", prototypes)
        self.chosen = torch.arange(len(prototypes)) if chosen is None else chosen
        self._columns: tuple[Tensor, Tensor] | None = None  # prototypes, and `search_columns` of them

    @classmethod
    def choose(cls, candidates: Tensor, count: int, generator: torch.Generator) -> PrototypeMemory:
        """Make a memory of `count` of the (M, D) candidates: their coreset."""
        chosen = select_coreset(candidates, count, generator)
        return cls(candidates[chosen.to(candidates.device)], chosen)

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
