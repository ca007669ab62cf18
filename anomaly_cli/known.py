"""Known anomalies: what labelled anomalous images add to the distance from normal, without entering any memory."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from anomaly_cli.memory import Whitening, nearest_prototype, select_coreset

KNOWN_NAMES = ("known_look", "known_cells")  # of the two deviations
KNOWN_WEIGHT = 0.6  # of each of the two in the image score, where the image scale has 1 (docs/method.md)
CANDIDATES = 40  # hottest cells of an image that are compared with the known ones
SIMILAR = 20  # of them make up its deviation: the mean of those most like a known anomaly
CELLS_OF_ANOMALY = 20  # hottest cells of a known anomaly that are remembered
MAX_KNOWN_CELLS = 2_000
INVERSE_PENALTY = 1e-2  # of the logistic regression on whitened looks; 1e-4 to 1e-2 rank alike
REACH = 20.0  # logarithms stay within ± this


class KnownAnomalies(nn.Module):
    """Two questions to an image: does it as a whole, do its oddest cells, look more like a known anomaly than normal?

    Both answers are ratios > 0: the odds of a logistic regression on the image scale, and how much nearer the hottest
    cells are to a known anomalous cell than to the nearest prototype. An unknown kind of anomaly gets about the ratio
    of a normal image, so what is not known is not ranked lower.
    """

    looks: Tensor
    look_weights: Tensor
    look_offset: Tensor
    cells: Tensor

    def __init__(self, looks: Tensor, look_weights: Tensor, look_offset: Tensor, cells: Tensor) -> None:
        """Keep what was fitted.

        Args:
            looks: (images, D) raw cells of the image scale of the known anomalies, for the next fit.
            look_weights: (D,) of the raw cell of the image scale.
            look_offset: ().
            cells: (A, d) embeddings of hot cells of known anomalies, at the finest scale.
        """
        super().__init__()
        self.register_buffer("looks", looks)
        self.register_buffer("look_weights", look_weights)
        self.register_buffer("look_offset", look_offset)
        self.register_buffer("cells", cells)

    def forward(self, looks: Tensor, cells: Tensor, distances: Tensor) -> Tensor:
        """Compare images with the known anomalies.

        Args:
            looks: (N, D) raw cells of the image scale.
            cells: (N, C, d) embeddings of the hottest cells of each image.
            distances: (N, C) of these to their nearest prototypes.

        Returns:
            (N, 2) > 0, in the order of `KNOWN_NAMES`.
        """
        N, C, d = cells.shape
        look = looks @ self.look_weights + self.look_offset
        to_known = nearest_prototype(cells.reshape(N * C, d), self.cells)[0].view(N, C)
        ratios = distances.clamp(min=1e-6).log() - to_known.clamp(min=1e-6).log()
        similar = ratios.topk(min(SIMILAR, C), dim=1).values.mean(dim=1)
        return torch.stack([look, similar], dim=1).clamp(-REACH, REACH).exp()


def fit_known(normal: Tensor, looks: Tensor, cells: Tensor, seed: int) -> KnownAnomalies:
    """Fit both comparisons.

    Args:
        normal: (M, D) raw cells of the image scale of normal images.
        looks: (images, D) of the known anomalies.
        cells: (A, d) embeddings of their hot cells; `MAX_KNOWN_CELLS` that cover the others are kept.
        seed: of the choice.
    """
    chosen = select_coreset(cells, MAX_KNOWN_CELLS, torch.Generator().manual_seed(seed))
    return KnownAnomalies(looks, *fit_look(normal, looks), cells[chosen.to(cells.device)])


def fit_look(normal: Tensor, anomalous: Tensor) -> tuple[Tensor, Tensor]:
    """Fit a class-balanced logistic regression between raw cells of the image scale, in whitened space.

    There are often more channels than images, and a whitening brings the images that it was fitted on far closer
    together than new ones. So one half of the normal images gives the whitening in which the other half is told from
    the anomalies, and the other way round; the answer is the mean of both.

    Args:
        normal: (M, D), M ≥ 4.
        anomalous: (A, D), A ≥ 1.

    Returns:
        (D,) weights and () offset of the log odds of being anomalous.
    """
    halves = normal[::2], normal[1::2]
    fits = [_fit_half(*halves, anomalous), _fit_half(*halves[::-1], anomalous)]
    weights, offsets = (torch.stack(each).mean(0) for each in zip(*fits, strict=True))
    return weights, offsets


def _fit_half(whitened: Tensor, normal: Tensor, anomalous: Tensor) -> tuple[Tensor, Tensor]:
    """Tell `normal` from `anomalous` in the space that `whitened` gives."""
    from sklearn.linear_model import LogisticRegression

    whitening = Whitening.fit(whitened)
    embeddings = whitening(normal)
    centre, spread = embeddings.mean(0), embeddings.std(0, unbiased=False).clamp(min=1e-6)
    looks = torch.cat([embeddings, whitening(anomalous)]).sub(centre).div(spread).cpu().double().numpy()
    labels = [0] * len(normal) + [1] * len(anomalous)
    fitted = LogisticRegression(C=INVERSE_PENALTY, class_weight="balanced", max_iter=1000).fit(looks, labels)
    slope = torch.from_numpy(fitted.coef_[0]).to(embeddings) / spread
    weights = whitening.matrix @ slope
    return weights, float(fitted.intercept_[0]) - centre @ slope - whitening.mean @ weights
