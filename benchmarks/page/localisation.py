"""Sections of the page about where anomalies are: regions, small defects, regions of interest."""

from __future__ import annotations

import pandas as pd

from benchmarks.page.figures import markdown
from benchmarks.page.page import AUROC, Page

REGION_FIGURES = {  # column: title, factor, digits
    "anomalous": ("anomalous images with a mask", 1, 0),
    "touching": ("of these, the region of the table touches a defect, %", 100, 1),
    "defects": ("defects in images with several", 1, 0),
    "recall_at_limit": ("of these, found by a region at the limit, %", 100, 1),
    "false_regions_at_limit": ("regions of a normal image at the limit", 1, 2),
    "recall_at_one_false": ("found where a normal image has one region, %", 100, 1),
}
SMALL_DEFECT_FIGURES = {
    AUROC: ("image AUROC", 100, 1),
    "s_a_megapixel": ("scoring, s a megapixel", 1, 2),
    "peak_mb": ("peak memory, MB", 1, 0),
}


def regions(results: pd.DataFrame, page: Page) -> None:
    """Compare regions with masks."""
    page.text(
        "A region touches a defect if its box reaches the mask, dilated by 1/32 of the longer side of the image. A "
        "defect is found if a cell of a region of the anomaly map lies on it, at the limit of normal or at the lowest "
        "threshold at which a normal image has at most one region in the mean."
    )
    tables = page.figures(results.assign(method="ours"), "regions", ["method"], REGION_FIGURES)
    lines = {title: texts.iloc[0] for title, texts in tables.items()}
    page.text(markdown(pd.DataFrame(lines).T, ["figure"]))


def small_defects(results: pd.DataFrame, page: Page) -> None:
    """Show what `--smallest-defect` finds and costs."""
    page.text(
        "Generated pictures, textures and washers, half of the tested ones with one defect. With `--smallest-defect` "
        "of its size they are read in tiles in which it spans two cells of the map; 0 is without the option."
    )
    index = {
        "pictures": "pictures",
        "side": "side, px",
        "defect_px": "defect, px",
        "smallest_defect": "--smallest-defect",
    }
    results = results.sort_values([*index], kind="stable").assign(set="all", seed=0)
    tables = page.figures(results, "small defects", [*index], SMALL_DEFECT_FIGURES)
    columns = {title: texts["all"] for title, texts in tables.items()}
    page.text(markdown(pd.DataFrame(columns), [*index.values()]))


def time_stamps(results: pd.DataFrame, page: Page) -> None:
    """Show what a region of interest brings where pictures have changing time stamps."""
    page.text(
        "Every image, normal or anomalous, gets a random time stamp in a corner; `--roi` leaves the place of the stamp "
        "out, with or without a stamp there."
    )
    page.table(results, "time stamps", ["run"], ["run"])
