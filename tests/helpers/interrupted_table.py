"""A measurement for the tables of the benchmarks, in a module that a process of its own imports quickly."""

from __future__ import annotations

from pathlib import Path


def measured_once(folder: Path) -> list[dict[str, str | int | float]]:
    """Measure a folder, and note it, up to the one that the file `last` names."""
    if folder.name > (folder.parent / "last").read_text():
        raise RuntimeError("ended")
    with (folder.parent / "measured").open("a") as file:
        file.write(folder.name)
    return [{"set": folder.name, "image_auroc": 1 / 3}, {"set": folder.name, "image_auroc": 0.25}]
