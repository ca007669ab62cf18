"""Compare with plain methods set by set: `python -m benchmarks.accuracy.margins --data DIR/screw … --out FILE.csv`.

A tool that cleans data must not be the worse choice on any set. The table has, for each set, the image AUROC of the
product, of plain nearest prototypes at 256 and at 128 pixels, of a Gaussian a position, and with `--before` of the
product as an earlier table has it; then the margin to the best of the others.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from anomaly_cli.config import DetectorConfig
from benchmarks.accuracy.methods import Settings
from benchmarks.accuracy.peers import jobs_of, measure
from benchmarks.jobs import means_by_set, run_table, set_options

METHODS = ("ours", "prototypes", "prototypes_128", "gaussian")
BEFORE = "before"  # the product, as the table of an earlier version has it
TOLERANCE = 0.01  # of the AUROC; a set counts as won or lost where the margin is larger


def margins(results: pd.DataFrame, before: pd.DataFrame | None = None) -> pd.DataFrame:
    """Average over the seeds and compare on each set.

    Args:
        results: rows with `set`, `method` and `image_auroc`.
        before: likewise, of an earlier version; its rows `ours` count as the method `BEFORE`.

    Returns:
        A row for each set, a column for each method, `best_other`, and `margin` = ours − the best other.
    """
    if before is not None:
        known = before[(before["method"] == "ours") & before["set"].isin(results["set"])]
        results = pd.concat([results, known.assign(method=BEFORE)])
    table = means_by_set(results, ["method"], "image_auroc").drop(columns="mean").T
    best = table.drop(columns="ours").max(axis=1)
    return table.assign(best_other=best, margin=table["ours"] - best)


def summary(table: pd.DataFrame) -> str:
    """Say in lines how many sets are won and lost, the worst margin, and the means of all sets and of two halves.

    The halves are every second set by name: a gain that all the sets share shows in both.
    """
    margin = table["margin"]
    lines = [
        f"won {(margin > TOLERANCE).sum()}, lost {(margin < -TOLERANCE).sum()} of {len(margin)} sets by more than "
        f"{TOLERANCE:g}; worst margin {margin.min():.3f} ({margin.idxmin()})"
    ]
    ordered = table.sort_index()
    for name, part in (("all", ordered), ("first half", ordered[::2]), ("second half", ordered[1::2])):
        means = part.drop(columns="margin").mean()
        lines.append(f"{name}: " + ", ".join(f"{method} {value:.3f}" for method, value in means.items()))
    return "\n".join(lines)


def main() -> None:
    """Measure and print the margins."""
    options = set_options(__doc__)
    options.add_argument("--before", type=Path, help="CSV of this command on an earlier version")
    options.set_defaults(seeds=1, max_train=200, max_test=120)
    args = options.parse_args()
    args.methods, args.image_size = METHODS, DetectorConfig().image_size
    args.coreset_ratio = Settings().coreset_ratio
    before = None if args.before is None else pd.read_csv(args.before)
    table = margins(run_table(args, measure, jobs_of), before)
    with pd.option_context("display.width", 200, "display.max_columns", None, "display.max_rows", None):
        print(table.round(3).to_string())
    print(summary(table))


if __name__ == "__main__":
    main()
