"""Select paths from a table of `score`; imports nothing heavy, so that a shell loop may call it often."""

from __future__ import annotations

import io
import os
import sys
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from anomaly_cli.errors import ConfigError, InputError
from anomaly_cli.tables.formats import TableFormat, check_library, format_of_content
from anomaly_cli.tables.reader import read_records, reading, score_of

STDIN = Path("-")


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
    def choose(cls, options: dict[Selector, float | bool | None]) -> Selection:
        """Make the selection of the one option that was given, or of none.

        Raises:
            ConfigError: several were given.
        """
        given = [(selector, value) for selector, value in options.items() if value is not None and value is not False]
        if len(given) > 1:
            raise ConfigError(f"give only one of {', '.join(f'--{selector}' for selector, _ in given)}")
        return cls(given[0][0], float(given[0][1])) if given else cls()


def select_paths(table: Path, table_format: TableFormat | None, selection: Selection) -> list[str]:
    """List the paths of the selected rows, most anomalous first, unreadable ones in the order of their names.

    Args:
        table: as `write_table` wrote it, perhaps filtered or sorted since; `-` is stdin.
        table_format: None to decide by the content.
        selection: which rows.

    Returns:
        The paths as in the table; a name that is not UTF-8 holds surrogates (`os.fsencode` gives its bytes).

    Raises:
        InputError: the table cannot be read or is none.
    """
    with reading("stdin" if table == STDIN else os.fspath(table)):
        content = sys.stdin.buffer.read() if table == STDIN else table.read_bytes()
        decided = table_format or format_of_content(content)
        check_library(decided, InputError)
        records = read_records(io.BytesIO(content), decided)
        if selection.selector is Selector.UNREADABLE:
            return sorted((str(each["path"]) for each in records if each["status"] != "ok"), key=os.fsencode)
        scored = [entry for record in records if (entry := score_of(record)) is not None]
        ranked = sorted(scored, key=lambda entry: (-entry[1], os.fsencode(entry[0])))
    if selection.selector is Selector.TOP:
        ranked = ranked[: int(selection.value)]
    return [path for path, score, flagged in ranked if _chosen(selection, score, flagged)]


def _chosen(selection: Selection, score: float, flagged: bool) -> bool:
    if selection.selector is Selector.FLAGGED:
        return flagged
    return selection.selector is not Selector.ABOVE or score >= selection.value
