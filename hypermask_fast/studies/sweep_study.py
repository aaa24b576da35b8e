"""What a search remembers of its trials, and by which it chooses the next one: Optuna's study."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

RUNNING, ENDED, PRUNED, FAILED = "running", "ended", "pruned", "failed"
LEAST_ENDED = 3
"""Trials that must have ended before others are compared with them."""


@dataclass(frozen=True)
class Trial:
    """A choice of values.

    Attributes:
        number: Counted from 0.
        values: Of the settings, by name.
        state: "running", "ended", "pruned" or "failed".
        value: Mean validation accuracy in percent; of a pruned trial the last one.
        reported: Mean validation accuracies of the finished tasks, by step.
        note: Why it failed.
    """

    number: int
    values: Mapping[str, Any]
    state: str = RUNNING
    value: float | None = None
    reported: Mapping[int, float] = field(default_factory=dict)
    note: str = ""


class Study(Protocol):
    """What a search needs; calls come one at a time."""

    def trials(self) -> Sequence[Trial]:
        """Return all trials, in their order."""

    def ask(self) -> Trial:
        """Begin a trial, with the values to try next."""

    def report(self, number: int, step: int, value: float) -> None:
        """Keep the accuracy of a running trial after a step."""

    def tell(self, number: int, state: str, value: float | None, note: str = "") -> None:
        """End a running trial."""


def is_behind(trial: Trial, others: Sequence[Trial]) -> bool:
    """Return whether a running trial's last accuracy is below the median of others at this step.

    The rule of Optuna's MedianPruner, with the present accuracy in place of the best one so far:
    the mean over tasks falls with each harder task, so that the first would stay the best. Others
    are those that ended, at least :data:`LEAST_ENDED`.
    """
    if not trial.reported:
        return False
    step = max(trial.reported)
    found = [o.reported[step] for o in others if o.state == ENDED and step in o.reported]
    return len(found) >= LEAST_ENDED and trial.reported[step] < statistics.median(found)
