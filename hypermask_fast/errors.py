"""Exceptions of the package: one sentence with the value seen, what was expected, and the fix."""

from __future__ import annotations

import difflib
import math
import reprlib
import signal
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any


class HypermaskError(Exception):
    """Base class of the errors that the command line prints without a traceback."""

    exit_status = 2


class ConfigError(HypermaskError, ValueError):
    """A setting has a wrong name, type or value."""


class PlanError(ConfigError):
    """The memory of a run cannot be told before it starts."""


class DataError(HypermaskError, RuntimeError):
    """A data file is missing, damaged or holds values that cannot be used."""


class CheckpointError(HypermaskError, RuntimeError):
    """A checkpoint is missing, damaged, foreign or does not fit the model."""


class TrainingError(HypermaskError, RuntimeError):
    """Training met a value it cannot continue from, such as a loss that is not finite."""


class InferenceError(HypermaskError, ValueError):
    """Outputs, scores or gradients are not finite, so that no task can be inferred from them."""


class ProcessLost(HypermaskError, RuntimeError):
    """One of several processes that train together ended, or did not answer in time.

    Args:
        world: How many there were.
        reason: What said so.
        fix: What to do. Default: to start all of them again.
    """

    def __init__(self, world: int, reason: object, fix: str = "start all of them again") -> None:
        self.world, self.reason = world, reason
        text = " ".join(str(reason).split())
        what = "did not answer in time" if "imed out" in text else "ended"
        super().__init__(f"one of the {world} processes {what}, so all of them end; {fix}")


class Stopped(HypermaskError):
    """A signal stopped a run after its checkpoint was saved."""

    def __init__(self, signum: int, run: Path, fix: str | None = None) -> None:
        name = signal.Signals(signum).name
        fix = fix or f"go on with `hypermask resume {run}`"
        super().__init__(f"stopped by {name}, all steps saved; {fix}")
        self.exit_status = 128 + signum


_FEW = 8
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80


def shown(value: Any) -> str:
    """Return a value as an error shows it: in one short line, an array by its shape and dtype."""
    kind = type(value).__name__
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if dtype is not None and isinstance(shape, tuple):
        text = repr(value) if math.prod(shape) <= _FEW else "\n"
        return f"a {kind} of shape {tuple(shape)} and {dtype}" if "\n" in text else text
    text = _SHORT.repr(value)
    return f"a {kind}" if "\n" in text or " at 0x" in text else text


def nearest(name: object, candidates: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the candidate closest to ``name``, or ``""``."""
    if not isinstance(name, str):
        return ""
    match = difflib.get_close_matches(name, list(candidates), n=1)
    return f" (did you mean {match[0]!r}?)" if match else ""


def warn_caller(message: str) -> None:
    """Warn at the line outside of the package that led here."""
    package = __name__.partition(".")[0]
    frame, level = sys._getframe(1), 2
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] == package:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)
