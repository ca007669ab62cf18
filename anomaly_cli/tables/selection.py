"""Select paths from a table of `score`; imports nothing heavy, so that a shell loop may call it often."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Self

from anomaly_cli.config import choose_one
from anomaly_cli.tables.formats import TableFormat
from anomaly_cli.tables.reader import open_records, read_paths


class Selector(StrEnum):
    """Which rows of a table to list: the name of the option."""

    FLAGGED = "flagged"
    ABOVE = "above"
    TOP = "top"
    UNREADABLE = "unreadable"


@dataclass(frozen=True)
class Selection:
    """Which rows of a table to list.

    Attributes:
        selector: None for all rows with a score.
        value: of `above` (a score) and `top` (a number of rows); the others have none.
    """

    selector: Selector | None = None
    value: float = 0

    @classmethod
    def choose(cls, options: Mapping[Selector, float | None]) -> Self:
        """Make the selection of the one option that was given, or of none; see `choose_one`."""
        given = choose_one(options)
        return cls(*given) if given else cls()


def select_paths(table: Path, table_format: TableFormat | None, selection: Selection) -> list[str]:
    """List the paths of the selected rows, most anomalous first, unreadable ones in the order of their names.

    Args:
        table: as `score` wrote it, perhaps filtered or sorted since; `-` is stdin.
        table_format: None to decide by the content.
        selection: which rows.

    Returns:
        The paths as in the table; a name that is not UTF-8 holds surrogates (`os.fsencode` gives its bytes).

    Raises:
        InputError: the table cannot be read or is none.
    """
    if selection.selector is Selector.UNREADABLE:
        with open_records(table, table_format=table_format) as source:
            unreadable = [str(record["path"]) for record in source.records() if record["status"] != "ok"]
        return sorted(unreadable, key=os.fsencode)
    ranked = read_paths(table, table_format)
    if selection.selector is Selector.TOP:
        ranked = ranked[: int(selection.value)]
    return [path for path, score, flagged in ranked if _chosen(selection, score, flagged)]


def _chosen(selection: Selection, score: float, flagged: bool) -> bool:
    if selection.selector is Selector.FLAGGED:
        return flagged
    return selection.selector is not Selector.ABOVE or score >= selection.value
