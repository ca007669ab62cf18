"""Which outputs a run may write: none that is an input, and no existing file of another kind is replaced."""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from anomaly_cli.errors import ConfigError
from anomaly_cli.files import check_target, is_written_directly

if TYPE_CHECKING:
    from PIL.PngImagePlugin import PngInfo

# Written into the metadata of every picture, page and plot; a file with it was made by this tool.
CREATOR = "anomaly-cli"
GZIP = b"\x1f\x8b"
TABLE_COLUMNS, REGION_COLUMNS = (b"path", b"score", b"flagged"), (b"path", b"region", b"area_fraction")
CHUNK = 2**16  # bytes at the start and at the end of a file that tell its kind


class Kind(StrEnum):
    """What an output is, in the words of messages."""

    TABLE = "a table of anomaly"
    REGIONS = "a table of regions"
    REGION_LINES = "a table of regions in JSON Lines"
    COCO = "a COCO file made by anomaly"
    JSON_LINES = "a table in JSON Lines"
    MODEL = "a model"
    VERDICT = "a summary of score"
    EVALUATION = "a result of evaluate"
    PAGE = "a review page"
    PICTURE = "a picture made by anomaly"
    ONNX = "an exported model"


@dataclass(frozen=True)
class Output:
    """One output of a run.

    Attributes:
        option: that names it.
        path: None for stdout, or if it is not asked for.
        kind: what is written.
    """

    option: str
    path: Path | None
    kind: Kind


def check_outputs(outputs: Sequence[Output], inputs: Iterable[Path | None] = ()) -> None:
    """Refuse outputs that cannot be written or would destroy something; call this before any work.

    Args:
        outputs: of one run.
        inputs: files that the run reads, as named by the user; folders, None and URLs do not matter.

    Raises:
        OutputError: a folder is missing or may not be written.
        ConfigError: an output is an input or another output, or would replace a file of another kind.
    """
    read = [path for path in inputs if path is not None]
    replaced: list[tuple[str, Path]] = []
    for output in outputs:
        if output.path is None:
            continue
        check_target(output.path)
        if is_written_directly(output.path):
            continue
        for option, path in replaced:
            if _is_same(path, output.path):
                raise ConfigError(f"{option} and {output.option} are one file, {output.path}: name two")
        replaced.append((output.option, output.path))
        if any(_is_same_file(path, output.path) for path in read):
            raise ConfigError(f"{output.option} {output.path} is an input of this run: name another file")
        check_kind(output)


def check_kind(output: Output) -> None:
    """Refuse to replace a file of another kind; an empty one may be replaced.

    Raises:
        ConfigError: it is of another kind, or its kind cannot be told.
    """
    path = output.path
    if path is not None and path.exists() and not is_of_kind(path, output.kind):
        raise ConfigError(
            f"{output.option} {path} exists and is not {output.kind}: remove {path} first, or name another file"
        )


def is_of_kind(path: Path, kind: Kind) -> bool:
    """Recognise a file by its content; an empty one is of every kind, one that cannot be read of none."""
    try:
        with path.open("rb") as file:
            head = file.read(CHUNK)
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, size - CHUNK))
            tail = file.read()
    except OSError:
        return False
    signs = {
        Kind.JSON_LINES: head.startswith(b"{") and _is_table(head, tail),
        Kind.MODEL: head[8:].startswith(b'{"__metadata__":{"anomaly":'),
        Kind.VERDICT: head.startswith(b"{") and b'"smallest_p"' in head,
        Kind.EVALUATION: head.startswith(b"{") and b'"confusion"' in head,
        Kind.PAGE: b"<title>anomaly report</title>" in head,
        Kind.TABLE: _is_table(head, tail),
        Kind.REGIONS: head.split() == [b"[", b"]"] or _is_table(head, tail, REGION_COLUMNS),
        Kind.REGION_LINES: head.startswith(b"{") and _is_table(head, tail, REGION_COLUMNS),
        Kind.COCO: head.startswith(b'{"info":') and CREATOR.encode() in head,
    }
    return not head or signs.get(kind, CREATOR.encode() in head + tail)


def _is_table(head: bytes, tail: bytes, columns: Sequence[bytes] = TABLE_COLUMNS) -> bool:
    """Recognise a table by some of its columns: in the header, in the first object or in the footer of Parquet."""
    if head.startswith(GZIP):
        try:
            head = zlib.decompressobj(wbits=31).decompress(head, CHUNK)
        except zlib.error:
            return False
    # Without its zeros UTF-16 reads like ASCII.
    named = tail if head.startswith(b"PAR1") else head.replace(b"\0", b"").lstrip(b"[\r\n ").partition(b"\n")[0]
    return all(re.search(rb"\b%s\b" % name, named) for name in columns)


def png_mark() -> PngInfo:
    """Metadata that mark a PNG as made by this tool."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("Software", CREATOR)
    return info


def _is_same_file(path: Path, other: Path) -> bool:
    try:
        return path.samefile(other)
    except (OSError, ValueError):
        return False


def _is_same(path: Path, other: Path) -> bool:
    """Compare two outputs, which need not exist: some file systems do not tell upper from lower case."""
    names = [os.path.realpath(each).casefold() for each in (path, other)]
    return names[0] == names[1] or _is_same_file(path, other)
