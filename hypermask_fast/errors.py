"""Exceptions of the package: one sentence with the value seen, what was expected, and the fix."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class HypermaskError(Exception):
    """Base class of the errors that the command line prints without a traceback."""


class ConfigError(HypermaskError, ValueError):
    """A setting has a wrong name, type or value."""


class DataError(HypermaskError, RuntimeError):
    """A data file is missing, damaged or holds values that cannot be used."""


class CheckpointError(HypermaskError, RuntimeError):
    """A checkpoint is missing, damaged, foreign or does not fit the model."""


class TrainingError(HypermaskError, RuntimeError):
    """Training met a value it cannot continue from, such as a loss that is not finite."""


def nearest(name: str, candidates: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the candidate closest to ``name``, or ``""``."""
    match = difflib.get_close_matches(name, list(candidates), n=1)
    return f" (did you mean {match[0]!r}?)" if match else ""
