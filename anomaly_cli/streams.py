"""Standard streams whose other end is closed or gone."""

from __future__ import annotations

import io
import os
import sys
from typing import TextIO


def redirect_stdout_to_null() -> None:
    """Give up stdout once its reader has gone; Python would complain again when it flushes it at exit."""
    redirect_to_null(sys.stdout)


def redirect_to_null(stream: TextIO) -> None:
    """Let a stream lead nowhere from here on."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def replace_closed_streams() -> None:
    """Put something in the place of streams that the shell closed (`>&-`), where the next file to be opened would be.

    What is written to stderr then goes nowhere; writing to stdout fails as it does for `cat`.
    """
    if sys.stdout is None:
        refusing = os.fdopen(os.open(os.devnull, os.O_RDONLY), "wb", buffering=0)
        sys.stdout = io.TextIOWrapper(refusing, encoding="utf-8", write_through=True)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115
