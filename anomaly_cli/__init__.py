"""Audit folders of images: learn what normal looks like, rank what deviates, show where."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anomaly_cli.api import heatmap, regions, score, train

__all__ = ["heatmap", "regions", "score", "train"]


def __getattr__(name: str) -> Any:
    """Import the engine when it is first asked for: the command line starts without it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from anomaly_cli import api

    return getattr(api, name)
