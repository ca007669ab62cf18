"""Whitening of embeddings by the shrunk covariance of normal cells."""

from __future__ import annotations

import torch
from torch import Tensor, nn

FIT_CHUNK = 2**22  # values; a covariance is summed over so many at once
SHRINKAGE = 1e-3  # enough to keep a whitening finite


class Whitening(nn.Module):
    """Affine map to zero mean and unit covariance of normal cells (shrunk towards a multiple of the identity)."""

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
            floor: added to every eigenvalue, as a fraction of their mean; limits the gain of directions in which normal
                cells hardly vary.
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
        # Contiguous, as it is read back from a model file: products then have the same bits before and after.
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
