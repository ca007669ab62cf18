"""Turn the errors of the system and of decoders into a few plain words for one cell of a table."""

from __future__ import annotations

import struct

from PIL import Image

from anomaly_cli.images.pillow_faults import NOT_SUPPORTED

MAX_REASON_LENGTH = 120  # characters


def reason_of(error: Exception, missing: int) -> str:
    """Say in one line why a file cannot be read.

    Args:
        error: of the system or of a decoder.
        missing: bytes that the file should have behind its end, where that is known, else 0.
    """
    detail = str(error) or type(error).__name__
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        reason = "no such file"
    elif isinstance(error, IsADirectoryError):
        reason = "folder that cannot be listed"
    elif isinstance(error, PermissionError):
        reason = "permission denied"
    elif isinstance(error, OSError) and error.strerror:
        reason = f"cannot be read: {error.strerror}"
    elif isinstance(error, Image.DecompressionBombError):  # a frame or tile inside the file
        reason = f"too large: {detail}"
    elif isinstance(error, MemoryError):
        reason = "cannot be decoded: not enough memory"
    elif missing or _is_cut_short(error):
        reason = f"truncated: {missing} bytes missing" if missing else "truncated"
    elif detail.startswith("Unsupported BMP "):
        reason = NOT_SUPPORTED + detail.removeprefix("Unsupported ")
    else:
        reason = f"cannot be decoded: {detail}"
    return _one_line(reason)


def header_reason(name: str, error: Exception) -> str:
    """Say in one line why a file cannot be read that begins as a format does and goes on otherwise."""
    kind = "truncated" if _is_cut_short(error) else "cannot be decoded"
    return _one_line(f"{kind}: bad {name} header ({error})")


def _is_cut_short(error: Exception) -> bool:
    end_reached = isinstance(error, EOFError) or isinstance(error.__cause__, EOFError | struct.error)
    return end_reached or "truncated" in str(error).lower() or "EOF" in str(error)


def _one_line(text: str) -> str:
    """Bring a decoder's message into one table cell: no line breaks, no control characters, not too long."""
    text = " ".join(text.split())
    text = "".join(character if character.isprintable() else "?" for character in text)
    return text if len(text) <= MAX_REASON_LENGTH else text[: MAX_REASON_LENGTH - 3] + "..."
