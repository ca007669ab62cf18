"""Section of the page about labels: what they do to types without any, and labels that are wrong."""

from __future__ import annotations

import pandas as pd

from benchmarks.page.page import Page

TOLERATED = 0.015  # of a fall of the image AUROC
TESTED = {
    "seen": "types that have labels",
    "unseen": "the type left out",
    "mislabelled": "all types, where the labelled images are normal ones",
}


def labels(results: pd.DataFrame, page: Page) -> None:
    """Compare the ranking with and without labels."""
    page.text(
        "Each type of anomalies of a set is left out once, and 3, 6 or 12 anomalies of the others are labelled, two "
        "draws each. Mislabelled are 4 or 12 normal images of the training set. A row is the mean of its cases."
    )
    for tested, title in TESTED.items():
        part = results.dropna(subset=[tested])
        with_labels = part.assign(labels="with labels", image_auroc=part[tested])
        without = part.assign(labels="without", image_auroc=part[f"{tested}_before"])
        both = pd.concat([without, with_labels]).sort_values("labelled", kind="stable")
        page.text(f"{title}:")
        page.table(both, f"labels / {tested}", ["labelled", "labels"], ["labelled", "score"])
        change = part[tested] - part[f"{tested}_before"]
        page.text(
            f"{len(part)} cases: change {100 * change.mean():+.1f} in the mean, {100 * change.min():+.1f} at worst; "
            f"{(change < -TOLERATED).sum()} fall by more than {100 * TOLERATED:.1f}."
        )
