"""The accuracies measured while tasks are learned, in the order in which they are."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]
"""(classes, classes): how many examples of a row's class were taken for a column's."""


def accuracy_of(counts: Counts) -> float:
    """Return the accuracy in percent."""
    return 100.0 * int(counts.trace()) / int(counts.sum())


class AccuracyRecord:
    """One row before training and one after each task, whoever trained it.

    Attributes:
        confusions: By task, the counts of which the last row was made; empty where it was loaded.
        order: Ids of the tasks in the order learned; a task that was trained twice is in it twice.
    """

    def __init__(self) -> None:
        self.order: list[int] = []
        self.confusions: dict[int, Counts] = {}
        self._rows: list[dict[int, float]] = []

    def columns(self, added: Collection[int]) -> tuple[int, ...]:
        """Return the ids of the matrix's columns: those learned, then those only added."""
        return *self.order, *(task for task in added if task not in self.order)

    def matrix(self, added: Collection[int]) -> npt.NDArray[np.float64]:
        """Return the matrix (T + 1, T) of :mod:`hypermask_fast.metrics.continual`."""
        columns = self.columns(added)
        matrix = np.full((len(columns) + 1, len(columns)), np.nan)
        for row, values in enumerate(self._rows):
            matrix[row] = [values.get(task, np.nan) for task in columns]
        return matrix

    def begin(
        self,
        task: int,
        learned: Sequence[int],
        added: Collection[int],
        count: Callable[[int], Counts],
    ) -> None:
        """Measure what is missing just before a task is learned.

        Args:
            task: Its id.
            learned: Tasks that the learner has learned; those not recorded get rows of NaN. The
                record is cut where one of its own is not among them, after a return to an earlier
                state.
            added: Tasks that can be evaluated.
            count: Returns the counts of one.
        """
        lost = next((place for place, t in enumerate(self.order) if t not in learned), None)
        if lost is not None:
            self._cut(lost)
        elsewhere = [other for other in learned if other not in self.order]
        if not self._rows:
            self._rows.append({} if elsewhere else {t: accuracy_of(count(t)) for t in added})
        self.order += elsewhere
        self._rows += [{} for _ in elsewhere]
        if task not in self._rows[-1]:
            self._rows[-1][task] = accuracy_of(count(task))

    def end(self, task: int, added: Collection[int], count: Callable[[int], Counts]) -> None:
        """Measure the tasks learned so far, and the next one that was added."""
        learned = [*self.order, task]
        ahead = [other for other in added if other not in learned][:1]
        found = {t: count(t) for t in dict.fromkeys(learned + ahead) if t in added}
        self.order, self.confusions = learned, found
        self._rows.append({t: accuracy_of(counts) for t, counts in found.items()})

    def forget(self, tasks: Collection[int]) -> None:
        """Drop what was measured of ids that other tasks have now, and all since one was learned.

        Args:
            tasks: The ids.
        """
        self._cut(next((i for i, t in enumerate(self.order) if t in tasks), len(self.order)))
        self.confusions = {t: v for t, v in self.confusions.items() if t not in tasks}
        self._rows = [{t: v for t, v in row.items() if t not in tasks} for row in self._rows]

    def _cut(self, place: int) -> None:
        """Go back to before the task at a place of the order was learned."""
        if place < len(self.order):
            self.confusions = {}
        del self.order[place:], self._rows[place + 1 :]

    def state(self) -> dict[str, Any]:
        """Return the record as JSON values."""
        rows = [{str(task): value for task, value in row.items()} for row in self._rows]
        return {"order": list(self.order), "accuracy": rows}

    def load(self, state: Mapping[str, Any], learned: Sequence[int]) -> None:
        """Restore what :meth:`state` returned, or what was recorded without an order."""
        self.confusions = {}
        self.order = list(state.get("order", learned))
        self._rows = [
            {int(task): value for task, value in row.items()} for row in state["accuracy"]
        ]
