"""The tasks of a trainer, and how well its learner does on them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from torch import Tensor

from hypermask_fast.scenarios import Task
from hypermask_fast.training.accuracy import AccuracyRecord, accuracy_of
from hypermask_fast.training.known_tasks import KnownTasks


class Measuring:
    """Measures tasks that were added, and keeps what was measured while they were learned.

    Args:
        known: The tasks.
        eval_batch_size: Examples a batch.
    """

    def __init__(self, known: KnownTasks, eval_batch_size: int) -> None:
        self._known, self._eval_batch_size = known, eval_batch_size
        self._record = AccuracyRecord()

    @property
    def _tasks(self) -> KnownTasks:
        """The tasks by the ids that the learner has for them now."""
        changed = self._known.follow()
        if changed:
            self._record.forget(changed)
        return self._known

    @property
    def columns(self) -> tuple[int, ...]:
        """Ids of the tasks of :attr:`accuracy`'s columns: as learned, then those only added.

        A task that was trained twice has two columns. One that was learned without this trainer has
        a column, and a row of NaN.
        """
        return self._record.columns(self._tasks)

    @property
    def accuracy(self) -> npt.NDArray[np.float64]:
        """Test accuracy (T + 1, T) in percent; row 0 before training, row i after i tasks.

        Columns are those of :attr:`columns`; NaN is what was not measured.
        """
        return self._record.matrix(self._tasks)

    @property
    def confusions(self) -> Mapping[int, npt.NDArray[np.int64]]:
        """By task, :meth:`confusion` for the last row of :attr:`accuracy`; empty if loaded."""
        known = self._tasks
        return {task: counts for task, counts in self._record.confusions.items() if task in known}

    @property
    def tasks_done(self) -> int:
        """Number of tasks that were trained to the end."""
        return len(self._record.order)

    @property
    def tasks(self) -> Mapping[int, Task]:
        """The tasks that were added, on the learner's device, by id."""
        return dict(self._tasks)

    def add(self, task: Task) -> int:
        """Add a task to the learner, if it is new, and return its id.

        Args:
            task: Tasks of one name are one task.

        Raises:
            ConfigError: A task of this name has other classes or examples.
        """
        return self._tasks.admit(task)

    def evaluate(
        self,
        task_id: int | str,
        split: str = "test",
        *,
        weights: Mapping[str, Tensor] | None = None,
    ) -> float:
        """Return the accuracy in percent of a task that was added.

        Args:
            task_id, split, weights: As in :meth:`confusion`.

        Raises:
            ValueError: The trainer has no such task, or the split has no examples.
        """
        return accuracy_of(self.confusion(task_id, split, weights=weights))

    def confusion(
        self,
        task_id: int | str,
        split: str = "test",
        *,
        weights: Mapping[str, Tensor] | None = None,
    ) -> npt.NDArray[np.int64]:
        """Return how many examples of each class of a task are taken for which of its classes.

        Args:
            task_id: The task, its id or its name.
            split: "test" (default), "validation" or "train".
            weights: Of the learner's ``task_weights``, to use in place of the present ones.

        Returns:
            (classes, classes): a row for each true class.

        Raises:
            ValueError: The trainer has no such task, or the split has no examples.
        """
        return self._tasks.confusion(task_id, split, weights, self._eval_batch_size)
