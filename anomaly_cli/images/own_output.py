"""Recognise pictures that this tool wrote, whatever their name and folder: a text chunk of the PNG says so."""

from __future__ import annotations

import os
from pathlib import Path

from anomaly_cli.outputs import CREATOR

MARKER = f"tEXtSoftware\0{CREATOR}".encode()
HEAD_BYTES = 1024  # text chunks stand before the pixels


def is_own_output(path: Path) -> bool:
    """Whether a local file is a PNG that this tool wrote; reads its first bytes only, and only of a name in .png."""
    if path.suffix.lower() != ".png":
        return False
    try:
        # Opening a named pipe would wait for its writer without O_NONBLOCK.
        file = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except OSError:
        return False  # decoding it will say why
    try:
        return MARKER in os.read(file, HEAD_BYTES)
    except OSError:
        return False
    finally:
        os.close(file)
