"""Attribution: which cells of an image make up its pooled distance.

A pooled scale has no map: its one embedding q is whitened, and its distance from the nearest prototype m is
d = r̂ · (Wᵀ(q − μ) − m) with the unit vector r̂ of that difference, a linear function of q. As q holds means over cells,
d is the mean over the cells of their share v · (x − m′), where v = W r̂ and m′ is the prototype before whitening
(a decomposition as of Bach et al. 2015, equation 2, exact here). The standard deviations in q are the mean over the
cells of their squared difference from the mean, divided by the standard deviation.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from anomaly_cli.detector.anomaly_detector import ScaleModel
from anomaly_cli.detector.features import class_token, pooled_embedding, pooled_maps
from anomaly_cli.detector.inspected import inspected_cells

MIN_DEVIATION = 1e-6  # of a channel; its share is zero where it is constant


def pooled_attribution(maps: dict[str, Tensor], scale: ScaleModel, inspected: Tensor | None = None) -> Tensor:
    """Divide the distance of a pooled scale among the cells of one image.

    Args:
        maps: (1, D_s, h_s, w_s) feature maps by name; a class token is shared by all cells alike.
        scale: the pooled scale.
        inspected: (1, H, W) bool, region of interest, whose cells were pooled; None for all.

    Returns:
        (h, w) shares on the grid of the finest pooled map, negative where a cell makes the image more normal, 0 where
        cells are ignored. The mean of the others is the distance, up to the interpolation of the coarser maps.
    """
    coarse = pooled_maps(maps)
    embedding = pooled_embedding(maps, inspected).flatten(1)  # (1, D)
    whitened = scale.whitening(embedding)
    _, nearest = scale.memory.nearest(whitened)
    residual = (whitened - scale.memory.prototypes[nearest])[0]
    matrix = scale.whitening.matrix.double()
    # The prototype before whitening is q − (Wᵀ)⁻¹ r.
    prototype = embedding[0].double() - torch.linalg.solve(matrix.T, residual.double())
    unit = residual.double() / residual.double().norm().clamp(min=1e-12)
    direction = matrix @ unit
    finest = coarse[0][0].double()
    mean = embedding[0, : len(finest), None, None].double()
    deviation = embedding[0, -len(finest) :, None, None].double()
    spread = (finest - mean).square() / deviation.clamp(min=MIN_DEVIATION)
    shares = torch.zeros(finest.shape[1:], dtype=torch.float64, device=finest.device)
    start = 0
    tokens = [token[0].double() for token in class_token(maps)] if inspected is None else []
    for each in [*(m[0].double() for m in coarse), *tokens, spread]:
        part = slice(start, start + len(each))
        share = torch.einsum("d,dhw->hw", direction[part], each - prototype[part, None, None])
        shares += F.interpolate(share[None, None], size=shares.shape, mode="bilinear")[0, 0]
        start += len(each)
    if inspected is not None:
        shares *= inspected_cells(inspected, *shares.shape)[0]
    return shares.float()
