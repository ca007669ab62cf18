"""The loop of stage 2: synthetic defects in held-out normal images, measured by the detector of their fold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor

from anomaly_cli.detector.anomaly_distance import Floats, deviations_of, scale_weights, sensitivities
from anomaly_cli.detector.scales import COARSE_SCALE
from anomaly_cli.training.cross_fitting import CrossFit, measure_held_out
from anomaly_cli.training.run import TrainingContext
from anomaly_cli.training.tiled_defects import plant

SYNTHETIC_DEFECTS = 128


def fit_scale_weights(fitted: CrossFit, run: TrainingContext, step: str = "planted") -> tuple[float, float]:
    """Stage 2: weigh the local scales, in all detectors, by their sensitivity to synthetic defects.

    Each image is measured by the detector of its fold, with and without the defect. `step` as in
    `TrainingContext.map_images`.

    Returns:
        The sensitivities of the fused map and of the coarse cells.
    """
    held_out, numbers = fitted.held_out, fitted.inliers
    planted_in = [numbers[i % len(numbers)] for i in range(SYNTHETIC_DEFECTS)]
    items = [
        replace(held_out[number], defect_seed=run.config.seed + i, other=held_out[numbers[(i + 1) % len(numbers)]].path)
        for i, number in enumerate(planted_in)
    ]
    defective: Sequence[list[Tensor]]
    if fitted.final.tiled:
        defective = plant(fitted, items, planted_in, run)
    else:
        defective = measure_held_out(fitted.detectors, items, run, step, "planting defects (stage 2)")

    def logs(*names: str) -> tuple[Floats, Floats]:
        """Logarithms of the deviations of these names: of normal images, and with defects."""
        columns = [fitted.final.deviation_names.index(name) for name in names]
        normal, odd = (np.log(deviations_of(fitted.final, each)[:, columns]) for each in (fitted.measured, defective))
        return normal, odd

    weights = run.processes.broadcast(scale_weights(*logs(*fitted.final.local_names), numbers, planted_in).tolist())
    for detector in fitted.detectors:
        for name, weight in zip(detector.local_names, weights, strict=True):
            detector.scale(name).weight.fill_(weight)
    d, coarse_d = run.processes.broadcast(sensitivities(*logs("map", COARSE_SCALE), numbers, planted_in).tolist())
    return d, coarse_d
