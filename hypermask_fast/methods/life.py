"""The life of a learner's tasks: added, begun, learned in phases, ended; and what a state holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hypermask_fast.errors import CheckpointError
from hypermask_fast.held import HoldsTensors
from hypermask_fast.methods.extra_state import (
    check_fits,
    decoded,
    encoded,
    extra_of,
    moving_of,
)
from hypermask_fast.methods.protocol import Losses, Phase
from hypermask_fast.methods.settings import MethodSettings
from hypermask_fast.methods.state_checks import check_phase, check_state
from hypermask_fast.methods.tasks import TaskId, TaskList, TaskRecord, check_steps

_SAME_TASK = ("tasks", "learned", "frozen", "current", "capacity")


class TaskLife(HoldsTensors):
    """A network, and the tasks it learns one after the other.

    Args:
        net: The target network.
        capacity: Tasks that there are rows for at first.

    Attributes:
        capacity: Tasks that there are rows for; it doubles when a task finds none left.
        generation: How often a task was left or a state taken; where it and the tensors' versions
            are the same outside of a task, so are the learner's outputs.
        phase: Name of the phase that the current task is in.
        keeps_start: Whether :meth:`begin_task` keeps a copy of weights and statistics for
            :meth:`abandon_task`. Default True.
    """

    keeps_start: bool = True

    def __init__(self, net: nn.Module, capacity: int) -> None:
        super().__init__()
        self.net = net
        self.capacity = capacity
        self._tasks = TaskList()
        self._learned: list[int] = []
        self._current: int | None = None
        self.phase = ""
        self.generation = 0
        self._start: dict[str, Tensor] | None = None

    @property
    def tasks(self) -> Sequence[TaskRecord]:
        """The tasks that were added; the place in the list is the id."""
        return tuple(self._tasks.records)

    @property
    def settings(self) -> MethodSettings | None:
        """The settings it was built with, which a method keeps as ``_settings``, or None."""
        return getattr(self, "_settings", None)

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

    def copy_task(
        self, task: TaskId, name: str | None = None, classes: Sequence[int] | None = None
    ) -> int:
        """Add a task that starts from where another one is, and return its id.

        What a method holds for each task is copied as it is now: an embedding, scores or a mask,
        states of normalisation. So the new task's network is the other's until it is begun, but for
        outputs of its own, and learning begins there.

        Args:
            task: The task to copy.
            name: Of the new one; default: its number.
            classes: Global ids of its classes. Default: those of the task that is copied.

        Raises:
            ValueError, TypeError: As :meth:`add_task`; or there is no task to copy.
            RuntimeError: A task is being learned.
        """
        source = self._tasks.checked(task)
        if self._current is not None:
            raise RuntimeError(
                f"task {self._current} is being learned, and abandon_task() would take a copy "
                "back; call end_task() before copy_task()"
            )
        own = self._tasks.records[source].classes
        made = self.add_task(name, own if classes is None else classes)
        self._copy_rows(source, made)
        self._tasks.note_copy(made, source)
        return made

    def _copy_rows(self, source: int, task: int) -> None:
        """Copy what is held for a task to a new one."""

    def _renew_rows(self, task: int) -> None:
        """Make what is held for a task that was copied as new, for the next one of this id."""

    @property
    def renamed(self) -> Sequence[tuple[str, str]]:
        """The old and new names of tasks that got others, in that order."""
        return tuple(self._tasks.renamed)

    def rename_task(self, task: TaskId, name: str) -> None:
        """Give a task another name.

        Raises:
            ValueError: The name is taken, or the task was not added.
            TypeError: The name is not a string.
        """
        self._tasks.rename(self._tasks.checked(task), name)

    def remove_task(self, task: TaskId) -> None:
        """Remove the task that was added last, such as one that turned out not to fit.

        Raises:
            ValueError: The task was not added, or not last.
            RuntimeError: It was learned, or is being learned.
        """
        task = self._tasks.checked(task)
        if task != len(self._tasks.records) - 1:
            raise ValueError(
                f"task {task} is not the one that was added last, {len(self._tasks.records) - 1}; "
                "ids are places, so only that one can be removed"
            )
        if task == self._current or task in self._learned:
            raise RuntimeError(
                f"task {task} was begun; call abandon_task() before, and do not remove a task that "
                "was learned"
            )
        is_copy = self._tasks.records[task].like is not None
        if is_copy and self._current is not None:
            raise RuntimeError(
                f"task {task} is a copy and task {self._current} is being learned; call end_task() "
                "before remove_task()"
            )
        self._tasks.records.pop()
        if is_copy:
            self._renew_rows(task)

    def _make_room(self, rows: int = 0) -> None:
        capacity = max(self.capacity, rows)
        while capacity < len(self._tasks.records):
            capacity *= 2
        if capacity > self.capacity:
            self._grow(capacity)
            self.capacity = capacity

    def _grow(self, capacity: int) -> None:
        """Give every table a row for each of this many tasks."""

    def task_id(self, task: TaskId) -> int:
        """Return the id of a task that was added, given its name or its id.

        Raises:
            ValueError: It was not added.
            TypeError: It is neither an integer nor a string.
        """
        return self._tasks.checked(task)

    def phases(self, task: TaskId, steps: int) -> Sequence[Phase]:
        """Return the phases that a task's steps make up, in their order. Default: one.

        Args:
            task: A task that was added.
            steps: Of all phases together.
        """
        return [Phase("train", steps)]

    def begin_task(self, task: TaskId, *, steps: int = 0, data: object = None) -> None:
        """Start learning a task: what earlier tasks need kept is recorded now.

        A method that changes weights here calls this first.

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
        task = self._checked_beginning(task, steps)
        first = self.phases(task, steps)[0].name
        if self.keeps_start:
            self._start = {name: value.clone() for name, value in moving_of(self).items()}
        self._current = task
        self.begin_phase(first)

    def begin_phase(self, name: str) -> None:
        """Enter a phase of the current task, which has new optimizers."""
        self.phase = name

    def _checked_beginning(self, task: TaskId, steps: int) -> int:
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
        task = self._require_current("end_task")
        if task not in self._learned:
            self._learned.append(task)
        self._leave()

    def abandon_task(self, *, restore: bool = True) -> None:
        """Leave the current task, which stays added, as if it had not been begun.

        Args:
            restore: Put weights and statistics back as they were at :meth:`begin_task`; what was
                added meanwhile stays. False leaves them as they are. Default True.

        Raises:
            RuntimeError: No task was begun, or its start was not kept and is to be restored.
        """
        task = self._require_current("abandon_task")
        if restore:
            if self._start is None:
                raise RuntimeError(
                    f"the weights at the start of task {task} were not kept, for keeps_start was "
                    "False or the state was loaded within the task; load a checkpoint, or call "
                    "abandon_task(restore=False)"
                )
            self.restore(self._start)
        self._leave()

    def _require_current(self, call: str) -> int:
        if self._current is None:
            raise RuntimeError(f"no task is being learned; call begin_task() before {call}()")
        return self._current

    def _leave(self) -> None:
        """Forget what only the current task needs."""
        self._current, self.phase, self._start = None, "", None
        self.generation += 1

    @torch.no_grad()
    def restore(self, weights: Mapping[str, Tensor]) -> None:
        """Set parameters and buffers to those of an earlier ``state_dict`` of this learner.

        The tasks, and rows that tables got since, stay as they are.
        """
        own = moving_of(self)
        missing = sorted(own.keys() - weights.keys())
        if missing:
            raise CheckpointError(
                f"the weights lack {missing[0]}; give those of an earlier state_dict() of this "
                "learner"
            )
        for name, value in own.items():
            saved = weights[name]
            (value[: len(saved)] if value.dim() else value).copy_(saved)

    @property
    def scores_by_accuracy(self) -> bool:
        """Whether :meth:`published_score` looks at the accuracy; else none is measured for it."""
        return True

    def published_score(self, losses: Losses, accuracy: float) -> float:
        """Return what ``selection="best_published"`` keeps the highest of; minus infinity: nothing.

        Default: the validation accuracy.

        Args:
            losses: Of the step that was taken last.
            accuracy: On validation data, in percent; NaN where it is not looked at.
        """
        return accuracy

    def task_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return all but parameters and buffers, to continue within a task: tensors, and JSON."""
        state = {
            "tasks": self._tasks.state(),
            "learned": list(self._learned),
            "current": self._current,
            "phase": self.phase,
            "capacity": self.capacity,
        }
        return {}, state

    def load_task_state(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Restore what :meth:`task_state` returned."""
        self._check_state(tensors, state)
        self.generation += 1
        self._tasks.load(state["tasks"])
        self._make_room(state.get("capacity", 0))
        self._learned = list(state["learned"])
        self._current, self._start = state["current"], None
        if self._current is not None:
            self.begin_phase(state.get("phase", "train"))

    def _check_state(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Raise CheckpointError where a state is not what :meth:`task_state` returned."""
        check_state(tensors, state)
        if state["current"] is not None:
            check_phase(state, [phase.name for phase in self.phases(state["current"], 2)])

    def get_extra_state(self) -> Tensor:
        """Return the JSON part of :meth:`task_state` as bytes, which ``state_dict`` holds."""
        return encoded(self.task_state()[1])

    def set_extra_state(self, state: Tensor) -> None:
        """Take the tasks, and the rows for them, from a ``state_dict``.

        Within the task that the state was made in, that goes on. Within another one, only
        :meth:`abandon_task` can follow, for the state lacks what earlier tasks keep.
        """
        given, own = decoded(state), decoded(self.get_extra_state())
        if self._current is not None and all(given.get(k) == own.get(k) for k in _SAME_TASK):
            self._return_to(given)
            return
        self.load_task_state({}, self._without_tensors(given))

    def _return_to(self, state: dict[str, Any]) -> None:
        """Take what a state within the present task has beside what earlier tasks keep."""
        if state.get("phase", self.phase) != self.phase:
            self.begin_phase(state["phase"])

    def _without_tensors(self, state: dict[str, Any]) -> dict[str, Any]:
        """Return the JSON part of a task's state for a learner that has no tensors to it."""
        return state

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Load weights and tasks of another learner of the same settings, or of this one.

        Tables grow to the rows of the state. A state without tasks, as earlier versions saved it,
        is refused.

        Args:
            state_dict: What ``state_dict()`` returned.
            strict, assign: As in ``nn.Module``.

        Raises:
            CheckpointError: The state does not fit; nothing was changed.
        """
        extra = extra_of(state_dict)
        if strict:
            rows = (int(extra["capacity"]), self.capacity)
            check_fits(state_dict, self._state_like(extra), rows)
        return super().load_state_dict(state_dict, strict, assign)

    def _state_like(self, extra: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return what a state with these tasks is to have, by name; tables may be longer."""
        return self.state_dict()

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *rest: Any, **options: Any
    ) -> None:
        # All that is called for a learner in another module.
        extra_of(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *rest, **options)
