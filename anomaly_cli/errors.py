"""Errors a user can fix: each is one line naming the path or value and the rule, and knows its exit code.

AnomalyError                exit 1
├── InputError              a folder or file given on the command line cannot be used
├── UnreadableImageError    one image file cannot be decoded; `reason` goes into the table
├── CheckpointError         a model file is missing, foreign, damaged or of another format
├── WeightsError            backbone weights are missing or do not fit
├── OutputError             a result cannot be written
├── ProcessError            another process of the same run ended
├── ClusterError            the machines of `--engine ray` cannot be reached or cannot do the work
└── ConfigError             exit 2: an option or setting is out of its range
    └── MissingExtraError   an optional library that it needs is not installed
"""

from __future__ import annotations


class AnomalyError(Exception):
    """Base of every error that is shown to the user as one line."""

    exit_code = 1


class InputError(AnomalyError):
    """A folder or file given as input cannot be used."""


class UnreadableImageError(AnomalyError):
    """One image file cannot be decoded.

    Attributes:
        reason: short sentence without the path, for the `reason` column.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class CheckpointError(AnomalyError):
    """A model file is missing, foreign, damaged or of another format."""


class WeightsError(AnomalyError):
    """Backbone weights are missing or do not fit the backbone."""


class OutputError(AnomalyError):
    """A result cannot be written."""


class ProcessError(AnomalyError):
    """Another process of the same run ended."""


class ClusterError(AnomalyError):
    """The machines of a cluster cannot be reached or cannot do the work."""


class ConfigError(AnomalyError):
    """An option or setting is out of its range."""

    exit_code = 2


class MissingExtraError(ConfigError):
    """An option or setting needs a library that is not installed; the message says how to install it."""
