"""Step cache for resuming an interrupted training run.

A step is a file, written atomically, that holds digests of what it depends on and of its content; reading it runs no
code. A step that a power cut damaged is done again.
"""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from anomaly_cli.errors import OutputError
from anomaly_cli.files import atomic_output

FORMAT = 3
START = b"anomaly training step "  # then format, digest of the identity, digest of the content, content
DIGEST_LENGTH = 64  # characters
SUFFIX = ".step"


@dataclass
class SavedState:
    """Base of a dataclass whose values are a part of a step that `Steps` keeps."""

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` restores."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the values of an interrupted run."""
        self.__dict__.update(state)


class Steps:
    """No cache: every step is done anew.

    Attributes:
        reused: of each phase that an interrupted run had begun, finished and total number.
    """

    def __init__(self) -> None:
        self.reused: dict[str, tuple[int, int]] = {}

    def load(self, _name: str, /) -> Any:
        """Return the value saved under this name by this run or an interrupted one, or None."""
        return None

    def save(self, _name: str, _value: Any, /) -> None:
        """Keep tensors, numbers, strings and None in tuples, lists and dictionaries."""

    def note_reuse(self, phase: str, done: int, total: int) -> None:
        """Note how much of a phase an interrupted run had done."""
        if done:
            self.reused[phase] = (done, total)


class SavedSteps(Steps):
    """Steps that are kept in a folder, one file each.

    Attributes:
        folder: of the files.
        discarded: number of removed steps of an earlier run, which depend on something else.
    """

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        """Find the steps of an earlier run, and remove stale ones.

        Args:
            folder: exists.
            identity: all that the steps depend on.

        Raises:
            OutputError: the folder holds something else.
        """
        super().__init__()
        self.folder = folder
        self.discarded = 0
        digest = _digest(json.dumps(identity, sort_keys=True).encode())
        self._start = START + f"{FORMAT} ".encode() + digest + b" "
        for path in sorted(folder.glob(f"*{SUFFIX}")):
            with path.open("rb") as file:
                start = file.read(len(self._start))
            if start[: len(START)] != START[: len(start)]:
                raise OutputError(f"{path} is not of `anomaly train --resume`; move it away")
            if start != self._start:
                self.discarded += 1
                path.unlink()

    def load(self, name: str, /) -> Any:
        """Return a finished step; None if there is none, or it is damaged."""
        try:
            content = self._path(name).read_bytes()
        except FileNotFoundError:
            return None
        start, packed = content[: len(self._start)], content[len(self._start) + DIGEST_LENGTH + 1 :]
        digest = content[len(self._start) : len(self._start) + DIGEST_LENGTH]
        return deserialize(packed) if start == self._start and digest == _digest(packed) else None

    def save(self, name: str, value: Any, /) -> None:
        """Keep a finished step, in the place of an earlier one of the same name.

        Raises:
            OutputError: it cannot be written.
        """
        content = serialize(value)
        with atomic_output(self._path(name)) as file:
            file.write(self._start + _digest(content) + b" " + content)

    def remove(self) -> None:
        """Remove all steps once the model is complete."""
        for path in [*self.folder.glob(f"*{SUFFIX}"), *self.folder.glob(f"*{SUFFIX}.partial")]:
            path.unlink()

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}{SUFFIX}"


def serialize(value: Any) -> bytes:
    """Pack a value as `Steps.save` takes it."""
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


def deserialize(content: bytes) -> Any:
    """Undo `serialize`; tensors come back on the CPU."""
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest().encode()
