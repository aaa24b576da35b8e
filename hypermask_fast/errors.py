"""Exceptions of the package: one sentence with the value seen, what was expected, and the fix."""

from __future__ import annotations

import difflib
import signal
from collections.abc import Iterable, Sequence
from pathlib import Path


class HypermaskError(Exception):
    """Base class of the errors that the command line prints without a traceback."""

    exit_status = 2


class ConfigError(HypermaskError, ValueError):
    """A setting has a wrong name, type or value."""


class DataError(HypermaskError, RuntimeError):
    """A data file is missing, damaged or holds values that cannot be used."""


class CheckpointError(HypermaskError, RuntimeError):
    """A checkpoint is missing, damaged, foreign or does not fit the model."""


class TrainingError(HypermaskError, RuntimeError):
    """Training met a value it cannot continue from, such as a loss that is not finite."""


class Stopped(HypermaskError):
    """A signal stopped a run after its checkpoint was saved."""

    def __init__(self, signum: int, run: Path) -> None:
        name = signal.Signals(signum).name
        super().__init__(f"stopped by {name}, all steps saved; go on with `hypermask resume {run}`")
        self.exit_status = 128 + signum


def nearest(name: str, candidates: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the candidate closest to ``name``, or ``""``."""
    match = difflib.get_close_matches(name, list(candidates), n=1)
    return f" (did you mean {match[0]!r}?)" if match else ""


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raise ConfigError where a value is not one of the choices."""
    if value not in choices:
        raise ConfigError(
            f"{name} is {value!r}{nearest(value, choices)}; choose one of {', '.join(choices)}"
        )
