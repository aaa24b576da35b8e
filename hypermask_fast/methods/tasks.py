"""The tasks of a learner: their ids, names and classes, and the checks of what users give."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from hypermask_fast.errors import nearest, shown
from hypermask_fast.methods.inputs import Batch
from hypermask_fast.modes import has_values

TaskId: TypeAlias = "int | str | Tensor"
"""A task: its id, as an integer or a tensor of one, or its name."""


@dataclass(frozen=True)
class TaskRecord:
    """A task that was added.

    Attributes:
        name: Of the task.
        classes: Global ids of the classes behind its first outputs, or None.
        like: The task that it was copied from, or None.
    """

    name: str
    classes: tuple[int, ...] | None
    like: int | None = None


def _check_integers(task: Tensor) -> None:
    if task.is_floating_point() or task.is_complex() or task.dtype == torch.bool:
        raise TypeError(f"task is {task.dtype}; give integers")


def _integer(value: Any) -> int | None:
    """Return an integer of any library as an int, and None for everything else."""
    if isinstance(value, bool) or (isinstance(value, Tensor) and value.dtype == torch.bool):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def check_steps(steps: int) -> None:
    """Raise TypeError where a number of steps is no integer, ValueError where it is negative."""
    number = _integer(steps)
    if number is None:
        raise TypeError(f"steps is {shown(steps)}; give an integer, 0 for an unknown number")
    if number < 0:
        raise ValueError(f"steps is {number}; give 0 or more")


def _read(task: Tensor, values: Callable[[Tensor], list[int]]) -> list[int]:
    """Return ids as integers; ValueError where they have no values, or none that can be read."""
    try:
        return values(task)
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise ValueError(
            f"task is a {type(task).__name__} of shape {tuple(task.shape)} on {task.device}, whose "
            "values cannot be read here; give an id as an integer"
        ) from error


def _class_ids(classes: Iterable[int]) -> tuple[int, ...]:
    if not isinstance(classes, Iterable):
        raise TypeError(f"classes is {classes!r}; give a list of their global ids, integers")
    ids = []
    for given in classes:
        number = _integer(given)
        if number is None:
            raise TypeError(f"classes has {given!r}; give a list of their global ids, integers")
        if number < 0:
            raise ValueError(f"classes has {given!r}; give global ids of 0 or more, -1 is unknown")
        ids.append(number)
    return tuple(ids)


class TaskList:
    """The tasks that were added to a learner; the place in the list is the id.

    Attributes:
        records: The tasks.
        renamed: The old and new names of tasks that got others, in that order.
        class_dim: The dimension of outputs that classes are along; None: of (batch, outputs).
    """

    class_dim: int | None = None

    def __init__(self) -> None:
        self.records: list[TaskRecord] = []
        self.renamed: list[tuple[str, str]] = []

    def add(self, name: str | None, classes: Iterable[int] | None) -> int:
        """See :meth:`Learner.add_task`."""
        name = f"task {len(self.records)}" if name is None else name
        self._check_name(name)
        ids = None if classes is None else _class_ids(classes)
        if ids is not None and len(set(ids)) != max(1, len(ids)):
            raise ValueError(f"classes are {list(ids)}; give at least one, and each once")
        self.records.append(TaskRecord(name, ids))
        return len(self.records) - 1

    def _check_name(self, name: str) -> None:
        if not isinstance(name, str):
            raise TypeError(f"name is {name!r}; give a string, or None for the task's number")
        if not name:
            raise ValueError("name is ''; give at least one letter, or None for the task's number")
        if any(record.name == name for record in self.records):
            raise ValueError(f"a task named {name!r} was added already; choose another name")

    def rename(self, task: int, name: str) -> None:
        """See :meth:`Learner.rename_task`."""
        record = self.records[task]
        if name == record.name:
            return
        if name is None:
            raise TypeError("name is None; give a string")
        self._check_name(name)
        self.records[task] = replace(record, name=name)
        self.renamed.append((record.name, name))

    def note_copy(self, task: int, source: int) -> None:
        """Note that a task's start was copied from another one."""
        self.records[task] = replace(self.records[task], like=source)

    def named(self, name: str) -> int:
        """Return the id of the task called ``name``; ValueError where there is none."""
        names = [record.name for record in self.records]
        if name not in names:
            known = f"the tasks are {names}" if names else "none was added; call add_task() first"
            raise ValueError(f"no task is called {shown(name)}{nearest(name, names)}; {known}")
        return names.index(name)

    def checked(self, task: TaskId) -> int:
        """Return the id of a task as an int; its name may stand for it.

        Raises:
            ValueError: The task was not added, or there are several ids.
            TypeError: It is neither an integer nor a string.
        """
        if isinstance(task, str):
            return self.named(task)
        if isinstance(task, Tensor):
            _check_integers(task)
            if task.numel() != 1:
                raise ValueError(f"task has shape {tuple(task.shape)}; give a single id here")
            task = _read(task, lambda ids: [int(ids)])[0]
        number = _integer(task)
        if number is None:
            raise TypeError(
                f"task is {shown(task)}; give the id that add_task() returned or the task's name, "
                "or to forward a tensor of ids, one for each row"
            )
        if not 0 <= number < len(self.records):
            known = f"0 to {len(self.records) - 1} were" if self.records else "none was"
            raise ValueError(f"task {number} was not added ({known}); call add_task() first")
        return number

    def checked_rows(self, task: Tensor, x: Batch) -> list[int]:
        """Return the distinct ids of a batch, ascending.

        Raises:
            ValueError: A task was not added, or there is not one id for each row.
            TypeError: The ids are not integers.
        """
        _check_integers(task)
        if task.shape != (len(x),):
            of = f", of shape {tuple(x.shape)}" if isinstance(x, Tensor) else ""
            raise ValueError(
                f"task has shape {tuple(task.shape)} for a batch of {len(x)}{of}; give one id, or "
                "one for each row"
            )
        if not len(task):
            raise ValueError("the batch and its task ids are empty; give one id for an empty batch")
        return [self.checked(i) for i in _read(task, lambda ids: ids.unique().tolist())]

    def check_factors(self, alpha: Tensor) -> None:
        """Raise TypeError or ValueError where there is not a factor for each of the tasks."""
        if not isinstance(alpha, Tensor) or not alpha.is_floating_point():
            raise TypeError(
                f"alpha is {shown(alpha)}; give a floating-point tensor ({len(self.records)},), a "
                "factor for each task that was added"
            )
        if alpha.shape != (len(self.records),) or not self.records:
            raise ValueError(
                f"alpha has shape {tuple(alpha.shape)}; give ({len(self.records)},), a factor for "
                "each task that was added"
            )

    def _classes_of(self, outputs: Any, task: int) -> tuple[int, int] | None:
        """Return how many classes a task has and their dimension; None where all outputs are its.

        Raises:
            ValueError: The network has fewer outputs than the task has classes, or it is not known
                which of their dimensions has the classes.
        """
        classes = self.records[task].classes
        if classes is None or not isinstance(outputs, Tensor):
            return None
        dim = -1 if self.class_dim is None else self.class_dim
        unknown = self.class_dim is None and outputs.dim() != 2
        if unknown or not -outputs.dim() <= dim < outputs.dim():
            raise ValueError(
                f"the outputs have shape {tuple(outputs.shape)} and task {task} "
                f"{len(classes)} classes, along class_dim={self.class_dim}; set learner.class_dim "
                "to the dimension of the classes, such as 1 or -1, or add tasks without classes"
            )
        count = outputs.shape[dim]
        if len(classes) > count:
            raise ValueError(
                f"task {task} has {len(classes)} classes and the network {count} outputs; build it "
                "with as many outputs as the largest task has classes, or add tasks without classes"
            )
        return None if len(classes) == count else (len(classes), dim)

    def own_outputs(self, outputs: Any, task: int) -> Any:
        """Return outputs with -inf in those that a task has no class for, where they are a tensor.

        Raises:
            ValueError: The network has fewer outputs than the task has classes, or it is not known
                which of their dimensions has the classes.
        """
        found = self._classes_of(outputs, task)
        if found is None:
            return outputs
        count, dim = found
        foreign = torch.arange(outputs.shape[dim], device=outputs.device) >= count
        if dim not in (-1, outputs.dim() - 1):
            foreign = foreign.view(-1, *[1] * (outputs.dim() - 1 - dim % outputs.dim()))
        return outputs.masked_fill(foreign, -torch.inf)

    def outputs_alone(self, outputs: Any, task: int) -> Any:
        """Return the outputs that a task has classes for; errors as in :meth:`own_outputs`."""
        found = self._classes_of(outputs, task)
        return outputs if found is None else outputs.narrow(found[1], 0, found[0])

    def own_outputs_of_rows(self, logits: Tensor, ids: Sequence[int], places: Tensor) -> Tensor:
        """Return what :meth:`own_outputs` does where each row has a task.

        Args:
            logits: (batch, outputs).
            ids: Of the tasks.
            places: (batch,), each row's place in ``ids``.
        """
        if all(self.records[task].classes is None for task in ids):
            return logits
        zeros = logits.new_zeros(1, *logits.shape[1:])
        foreign = torch.cat([self.own_outputs(zeros, task) for task in ids]).isinf()
        return logits.masked_fill(foreign[places], -torch.inf)

    def check_labels(self, y: Tensor, task: int, outputs: int) -> None:
        """Raise ValueError where labels on the CPU are not classes of the task.

        A GPU would have to wait for the labels to be read; there, only those outside the outputs
        are found, by cross-entropy's own assertion. What traces or transforms the losses cannot
        read them.
        """
        if not has_values(y):
            return
        classes = self.records[task].classes
        count = outputs if classes is None else len(classes)
        low, high = (int(label) for label in y.aminmax())
        if low < 0 or high >= count:
            raise ValueError(
                f"labels reach from {low} to {high} and task {task} has {count} classes; count "
                "labels from 0 within each task"
            )

    def state(self) -> list[dict[str, Any]]:
        """Return the tasks as JSON values."""
        states = [asdict(record) for record in self.records]
        for state in states:
            if state["like"] is None:
                del state["like"]
        return states

    def load(self, state: Sequence[dict[str, Any]]) -> None:
        """Restore what :meth:`state` returned."""
        self.records = [
            TaskRecord(
                r["name"], None if r["classes"] is None else tuple(r["classes"]), r.get("like")
            )
            for r in state
        ]
