"""The page of the benchmarks as it grows, and the long rows of its figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from benchmarks.page.figures import Grid, grid, markdown

AUROC = "image_auroc"
HEAD = """# Benchmarks

Made by `make bench DATA=BENCH FURTHER=BENCH CIFAR=BENCH/cifar10 PHOTOGRAPHS=BENCH/imagenette`, each path that of its
own sets; the page itself by `python -m benchmarks.page.write_report`. Do not edit: the next run replaces it. All
figures in one file: [benchmarks.csv](benchmarks.csv).

`BENCH` is a folder of sets in MVTec layout: subsets of screw and transistor (MVTec AD), magnetic_tile and elpv_mono
(solar cells); what `benchmarks.accuracy.further_sets` laid out; a packed subset of CIFAR-10; and the photographs of
Imagenette. Figures are in percent, image AUROC where nothing else is said, mean ± standard deviation over the seeds; a
seed draws the images and is the seed of the training. The mean over the sets takes those only that have every row
of a table; where these are fewer than half, rows that a set lacks have no mean.
"""


@dataclass
class Page:
    """The page as it grows, and the long rows of its figures."""

    folder: Path
    parts: list[str] = field(default_factory=lambda: [HEAD])
    rows: list[pd.DataFrame] = field(default_factory=list)

    def table(self, results: pd.DataFrame, table: str, index: list[str], names: list[str], figure: str = AUROC) -> Grid:
        """Add a table of one figure in percent."""
        figures = grid(results, index, figure)
        self.parts.append(markdown(figures.texts(100, 1), names))
        self.rows.append(figures.rows(table, figure))
        return figures

    def figures(
        self, results: pd.DataFrame, table: str, index: list[str], figures: Mapping[str, tuple[str, float, int]]
    ) -> dict[str, pd.DataFrame]:
        """Note several figures, and write each as a table of texts, by title.

        Args:
            results: a row a run.
            table: name in the long rows.
            index: as in `grid`.
            figures: of each column its title, factor and digits; columns that the results lack are left out.
        """
        texts = {}
        for figure, (title, factor, digits) in figures.items():
            if figure in results:
                by_condition = grid(results, index, figure)
                self.rows.append(by_condition.rows(table, figure))
                texts[title] = by_condition.texts(factor, digits)
        return texts

    def text(self, *paragraphs: str) -> None:
        """Add paragraphs."""
        self.parts.extend(paragraphs)

    def picture(self, name: str, title: str) -> Path:
        """Add a picture and return where it is to be drawn."""
        path = self.folder / f"benchmarks-{name}.png"
        self.parts.append(f"![{title}]({path.name})")
        return path
