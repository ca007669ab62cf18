"""Plot a ranking against labels: ROC curve, precision-recall curve, distribution of scores; prints nothing."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly_cli.errors import OutputError
from anomaly_cli.files import atomic_output
from anomaly_cli.outputs import CREATOR

NORMAL_COLOUR, ANOMALOUS_COLOUR = "#4477aa", "#cc6677"  # safe for colour-blind readers (Tol 2021)
BINS = 40
FORMATS = (".png", ".pdf", ".svg")


def check_curves(out: Path) -> None:
    """Raise an error now if `draw_curves` could not write `out` later.

    Raises:
        OutputError: matplotlib is missing, or the suffix names no format.
    """
    if find_spec("matplotlib") is None:
        raise OutputError("--curves needs matplotlib: pip install 'anomaly-cli[plots]'")
    if out.suffix.lower() not in FORMATS:
        raise OutputError(f"cannot write {out}: curves are drawn as {', '.join(FORMATS)}")


def draw_curves(
    anomalous: NDArray[np.bool_], scores: NDArray[np.float64], flagged: NDArray[np.bool_], out: Path
) -> None:
    """Draw three panels for (N,) labels, scores and flags; both classes must occur.

    Raises:
        OutputError: `out` cannot be written.
    """
    check_curves(out)
    from matplotlib.figure import Figure
    from sklearn.metrics import PrecisionRecallDisplay, RocCurveDisplay

    figure = Figure(figsize=(12, 4), layout="constrained")
    roc, precision_recall, distribution = figure.subplots(1, 3)
    RocCurveDisplay.from_predictions(anomalous, scores, ax=roc, name="score")
    PrecisionRecallDisplay.from_predictions(anomalous, scores, ax=precision_recall, name="score")
    if flagged.any():
        recall, flags = flagged[anomalous].mean(), {"color": ANOMALOUS_COLOUR, "label": "flagged in the table"}
        roc.plot(flagged[~anomalous].mean(), recall, "o", **flags)
        precision_recall.plot(recall, anomalous[flagged].mean(), "o", **flags)
    for axes, x_label, y_label in (
        (roc, "false-positive rate", "true-positive rate (recall)"),
        (precision_recall, "recall", "precision"),
    ):
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel=x_label, ylabel=y_label)
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)
    _distribution(distribution, anomalous, scores, flagged)
    with atomic_output(out) as file:
        kind = out.suffix[1:].lower()
        figure.savefig(file, format=kind, dpi=120, metadata={"Software" if kind == "png" else "Creator": CREATOR})


def _distribution(
    axes: Any, anomalous: NDArray[np.bool_], scores: NDArray[np.float64], flagged: NDArray[np.bool_]
) -> None:
    edges = np.linspace(0, max(1.0, float(scores.max())) * 1.001, BINS + 1)
    for name, chosen, colour in (("normal", ~anomalous, NORMAL_COLOUR), ("anomalous", anomalous, ANOMALOUS_COLOUR)):
        axes.hist(scores[chosen], edges, color=colour, alpha=0.6, label=f"{name} ({chosen.sum()})")
    if flagged.any():
        axes.axvline(scores[flagged].min(), color="black", linestyle="--", label="lowest flagged score")
    axes.set(xlabel="score (1 = limit of normal)", ylabel="images")
    place = {"loc": "lower center", "bbox_to_anchor": (0.5, 1)}  # above the axes: inside, it would hide bars
    axes.legend(frameon=False, ncols=3, fontsize="small", handlelength=1.2, columnspacing=1, **place)
