"""The life of a learner's tasks: added, begun, learned in phases, ended; and what a state holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from hypermask_fast.methods.protocol import Phase
from hypermask_fast.methods.tasks import TaskList, TaskRecord, check_state, check_steps


class TaskLife(nn.Module):
    """A network, and the tasks it learns one after the other.

    Args:
        net: The target network.
        capacity: Tasks that there are rows for at first.

    Attributes:
        capacity: Tasks that there are rows for; it doubles when a task finds none left.
        phase: Name of the phase that the current task is in.
    """

    def __init__(self, net: nn.Module, capacity: int) -> None:
        super().__init__()
        self.net = net
        self.capacity = capacity
        self._tasks = TaskList()
        self._learned: list[int] = []
        self._current: int | None = None
        self.phase = ""

    @property
    def tasks(self) -> Sequence[TaskRecord]:
        """The tasks that were added; the place in the list is the id."""
        return tuple(self._tasks.records)

    @property
    def current(self) -> int | None:
        """The task between :meth:`begin_task` and :meth:`end_task`, or None."""
        return self._current

    @property
    def learned(self) -> Sequence[int]:
        """The tasks that were ended, in that order."""
        return tuple(self._learned)

    def add_task(self, name: str | None = None, classes: Sequence[int] | None = None) -> int:
        """Add a task, which may be evaluated at once, and return its id.

        Args:
            name: Shown in reports; default: its number.
            classes: Global ids of its classes. The task uses the first ``len(classes)`` outputs;
                None uses all.

        Raises:
            ValueError: The name is taken, or the classes are none or repeated.
            TypeError: The name is not a string, or a class not an integer.
        """
        task = self._tasks.add(name, classes)
        self._make_room()
        return task

    def _make_room(self) -> None:
        capacity = self.capacity
        while capacity < len(self._tasks.records):
            capacity *= 2
        if capacity > self.capacity:
            self._grow(capacity)
            self.capacity = capacity

    def _grow(self, capacity: int) -> None:
        """Give every table a row for each of this many tasks."""

    def task_id(self, name: str) -> int:
        """Return the id of the task called ``name``.

        Raises:
            ValueError: There is none.
        """
        return self._tasks.named(name)

    def phases(self, task: int, steps: int) -> Sequence[Phase]:
        """Return the phases that a task's steps make up, in their order. Default: one.

        Args:
            task: A task that was added.
            steps: Of all phases together.
        """
        return [Phase("train", steps)]

    def begin_task(self, task: int, *, steps: int = 0, data: object = None) -> None:
        """Start learning a task: what earlier tasks need kept is recorded now.

        Args:
            task: A task that was added.
            steps: Training steps that the task will have, for what a method changes over them.
                Default 0: unknown, and nothing changes.
            data: What the task is learned from, such as a :class:`hypermask_fast.scenarios.Task`,
                for methods that look at it first.

        Raises:
            ValueError: The task was not added, or the number of steps is negative.
            TypeError: The task or the number of steps is no integer.
            RuntimeError: Another task has not been ended.
        """
        self._current = self._checked_beginning(task, steps)
        self.begin_phase(self.phases(task, steps)[0].name)

    def begin_phase(self, name: str) -> None:
        """Enter a phase of the current task, which has new optimizers."""
        self.phase = name

    def _checked_beginning(self, task: int, steps: int) -> int:
        task = self._tasks.checked(task)
        if self._current is not None:
            raise RuntimeError(
                f"task {self._current} is still being learned; call end_task() before "
                f"begin_task({task})"
            )
        check_steps(steps)
        return task

    def end_task(self, data: object = None) -> None:
        """Finish the current task; later tasks protect it.

        Args:
            data: As in :meth:`begin_task`, for methods that look at it once more.

        Raises:
            RuntimeError: No task was begun.
        """
        if self._current is None:
            raise RuntimeError("no task is being learned; call begin_task() before end_task()")
        if self._current not in self._learned:
            self._learned.append(self._current)
        self._current = None

    def task_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return what ``state_dict`` lacks to continue within a task: tensors, and JSON values."""
        state = {
            "tasks": self._tasks.state(),
            "learned": list(self._learned),
            "current": self._current,
            "phase": self.phase,
        }
        return {}, state

    def load_task_state(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Restore what :meth:`task_state` returned."""
        check_state(tensors, state)
        self._tasks.load(state["tasks"])
        self._make_room()
        self._learned = list(state["learned"])
        self._current = state["current"]
        if self._current is not None:
            self.begin_phase(state.get("phase", "train"))
