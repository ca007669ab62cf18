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
        if M > D:
            products, fourth = torch.zeros(()), torch.zeros(())
            for chunk in cells.split(max(1, FIT_CHUNK // D)):
                centred = (chunk - mean).double()
                products = products + centred.T @ centred
                fourth = fourth + centred.square().sum(1).square().sum()
        else:  # the products of the cells have the same eigenvalues but zeros, and far fewer entries
            centred = (cells - mean).double()
            products = centred @ centred.T
            fourth = products.diagonal().square().sum()
        covariance = products / M
        scale = (covariance.trace() / D).clamp(min=1e-12)
        share = _ledoit_wolf_shrinkage(scale, covariance.square().sum() / D, fourth / (M * D), M)
        values, vectors = torch.linalg.eigh(covariance * (1 - share))
        least = (share + floor) * scale
        gains = (values.clamp(min=0) + least).rsqrt()
        if M > D:
            matrix = vectors * gains
        else:
            positive = values > values.max() * 1e-10
            directions = centred.T @ vectors[:, positive]
            directions = directions / directions.norm(dim=0)
            # All directions that no cell varies in have the same gain.
            rest = least.rsqrt()
            matrix = rest * torch.eye(D).to(centred) + directions * (gains[positive] - rest) @ directions.T
        # Contiguous, as it is read back from a model file: products then have the same bits before and after.
        return cls(mean, matrix.float().contiguous())

    def forward(self, cells: Tensor) -> Tensor:
        """Whiten (..., D) cells."""
        return (cells - self.mean) @ self.matrix


def _ledoit_wolf_shrinkage(scale: Tensor, square: Tensor, fourth: Tensor, M: int) -> float:
    """Optimal share of the spherical target, Ledoit & Wolf 2004, equation 14, from means over the D channels.

    Args:
        scale: () mean eigenvalue of the covariance.
        square: () mean square of the eigenvalues.
        fourth: () mean fourth power of the lengths of the M centred cells, divided by D.
        M: how many cells.
    """
    distance = square - scale.square()
    if distance <= 0:
        return 0.0
    return float(((fourth - square) / M / distance).clamp(0, 1))
