"""Compare a table of `anomaly score` with the labels of sample_data: `python -m benchmarks.sample SCORES LABELS`."""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
from sklearn.metrics import roc_auc_score


def sample_auroc(scores: Path, labels: Path) -> float:
    """Image AUROC of the readable files; both tables name a file by the end of its path."""
    table = pd.read_csv(scores)
    known = pd.read_csv(labels)
    kind = {Path(path).name: label for path, label in zip(known["path"], known["label"], strict=True)}
    readable = table[table["status"] == "ok"]
    anomalous = [kind[Path(path).name] == "anomalous" for path in readable["path"]]
    return float(roc_auc_score(anomalous, readable["score"]))


def main() -> None:
    """Print the figure."""
    scores, labels = map(Path, sys.argv[1:])
    print(f"image AUROC on sample_data: {sample_auroc(scores, labels):.3f}")


if __name__ == "__main__":
    main()
