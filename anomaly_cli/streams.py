"""Standard streams that are closed, or whose reader is gone."""

from __future__ import annotations

import io
import os
import sys
from typing import TextIO


def redirect_stdout_to_null() -> None:
    """Redirect stdout to the null device once its reader is gone; flushing it at exit would fail again."""
    redirect_to_null(sys.stdout)


def redirect_to_null(stream: TextIO) -> None:
    """Redirect a stream to the null device."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def replace_closed_streams() -> None:
    """Replace streams that the shell closed (`>&-`).

    Output to stderr is then discarded; writing to stdout fails as it does for `cat`.
    """
    if sys.stdout is None:
        refusing = os.fdopen(os.open(os.devnull, os.O_RDONLY), "wb", buffering=0)
        sys.stdout = io.TextIOWrapper(refusing, encoding="utf-8", write_through=True)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115
