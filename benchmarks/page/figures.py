"""Turn the rows of a table into means with spreads, Markdown and plots; knows nothing of what is measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MEAN = "mean"  # column of the mean over the sets
PLOT_SIZE = (7.0, 3.2)  # inches
PLOT_DPI = 80


@dataclass(frozen=True)
class Grid:
    """A figure by condition (rows) and set (columns), the mean over the sets last.

    Attributes:
        mean: over the seeds.
        spread: standard deviation over the seeds; NaN where there is one.
        seeds: largest number of seeds of any cell.
    """

    mean: pd.DataFrame
    spread: pd.DataFrame
    seeds: int

    def texts(self, factor: float, digits: int) -> pd.DataFrame:
        """Write every cell as `mean ± spread`, times a factor."""
        cells = {}
        for column in self.mean:
            pairs = zip(self.mean[column], self.spread[column], strict=True)
            cells[str(column)] = [_cell(factor * mean, factor * spread, digits) for mean, spread in pairs]
        return pd.DataFrame(cells, index=self.mean.index)

    def rows(self, table: str, figure: str) -> pd.DataFrame:
        """Make long rows of it: table, condition, set, figure, mean, spread, seeds."""
        conditions = [" / ".join(map(str, key if isinstance(key, tuple) else (key,))) for key in self.mean.index]
        parts = []
        for name in self.mean:
            values = {"mean": self.mean[name].to_numpy(), "spread": self.spread[name].to_numpy()}
            part = pd.DataFrame({"table": table, "condition": conditions, "set": name, "figure": figure, **values})
            parts.append(part.assign(seeds=self.seeds))
        return pd.concat(parts, ignore_index=True).dropna(subset="mean")


def _cell(mean: float, spread: float, digits: int) -> str:
    if np.isnan(mean):
        return "–"
    return f"{mean:.{digits}f}" if np.isnan(spread) else f"{mean:.{digits}f} ± {spread:.{digits}f}"


def grid(results: pd.DataFrame, index: list[str], figure: str) -> Grid:
    """Average a figure over seeds, then over the sets.

    The mean over the sets takes those only that have every row; where these are fewer than half of them, it takes all
    sets, and rows that one of them lacks have no mean.

    Args:
        results: a row a run, with columns `set`, `seed`, those of `index` and the figure.
        index: what tells the rows of the grid apart; they stay in the order of first appearance.
        figure: name of a column.
    """
    order = results[index].drop_duplicates()
    by_seed = results.pivot_table(index=[*index, "seed"], columns="set", values=figure, sort=False)
    by_seed = by_seed[[name for name in results["set"].unique() if name in by_seed]]
    complete = by_seed.groupby(level=index, sort=False).mean().notna().all()
    enough = 2 * complete.sum() >= len(complete)
    by_seed[MEAN] = by_seed[complete[complete].index].mean(axis=1) if enough else by_seed.mean(axis=1, skipna=False)
    grouped = by_seed.groupby(level=index, sort=False)
    keys = pd.MultiIndex.from_frame(order) if len(index) > 1 else pd.Index(order[index[0]])
    kept = keys[keys.isin(grouped.mean().index)]
    return Grid(grouped.mean().loc[kept], grouped.std().loc[kept], int(grouped.size().max()))


def markdown(table: pd.DataFrame, names: Sequence[str]) -> str:
    """Write a table of texts; the levels of its index become the first columns, of these names."""
    rows = [[*names, *map(str, table.columns)], ["---"] * (len(names) + table.shape[1])]
    for key, values in zip(table.index, table.to_numpy(), strict=True):
        rows.append([*map(str, key if isinstance(key, tuple) else (key,)), *map(str, values)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


@dataclass(frozen=True)
class Line:
    """One line of a plot: (n,) places, values and spreads, NaN where there is none."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    spread: Sequence[float]


def plot_lines(lines: list[Line], path: Path, x_label: str, ticks: Sequence[tuple[float, str]]) -> None:
    """Draw image AUROC in percent over a condition."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=PLOT_SIZE, layout="constrained")
    for line in lines:
        axes.errorbar(line.x, line.y, np.nan_to_num(line.spread), marker="o", capsize=3, markersize=4, label=line.label)
    axes.set(xlabel=x_label, ylabel="image AUROC, %")
    axes.set_xticks([place for place, _ in ticks], [text for _, text in ticks])
    figure.legend(frameon=False, fontsize=7, ncols=3, loc="outside lower center")
    axes.grid(alpha=0.3)
    _save(figure, path)


def plot_bars(values: pd.DataFrame, path: Path) -> None:
    """Draw image AUROC in percent: a group of bars a column, a bar a row."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=PLOT_SIZE, layout="constrained")
    width = 0.8 / len(values)
    for i, (name, row) in enumerate(values.iterrows()):
        axes.bar(np.arange(len(row)) + i * width - 0.4 + width / 2, row, width, label=str(name).strip("*"))
    axes.set(ylabel="image AUROC, %", ylim=(50, 100))
    axes.set_xticks(np.arange(values.shape[1]), [str(column) for column in values.columns])
    figure.legend(frameon=False, fontsize=7, ncols=4, loc="outside lower center")
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    from matplotlib import pyplot as plt

    figure.savefig(path, dpi=PLOT_DPI, metadata={"Software": None})
    plt.close(figure)
