"""Sequences of tasks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import copy
from typing import overload

import torch

from hypermask_fast.errors import ConfigError, shown
from hypermask_fast.scenarios.sources import check_types
from hypermask_fast.scenarios.task import Task, check_task


class Scenario(Sequence[Task]):
    """A sequence of tasks with one input shape; a slice of it is one, and may be empty.

    Args:
        name: Shown in reports.
        tasks: At least one task.

    Raises:
        ConfigError: there is no task, or the tasks' input shapes differ.
        TypeError: one is no Task, or the name no string.
    """

    def __init__(self, name: str, tasks: Sequence[Task]) -> None:
        check_types(name=(name, str))
        if isinstance(tasks, Task) or not isinstance(tasks, Iterable):
            raise TypeError(f"tasks are {shown(tasks)}; give a list of Tasks")
        for task in tasks:
            check_task(task)
        shapes = {task.input_shape for task in tasks}
        if len(shapes) != 1:
            raise ConfigError(
                f"scenario {name!r} has the input shapes {sorted(shapes)}; "
                "give at least one task, and tasks of one shape"
            )
        self.name = name
        self.tasks = tuple(tasks)
        (self.input_shape,) = shapes

    @property
    def num_classes(self) -> int:
        """Width of the output head that serves every task: the largest number of classes."""
        return max((task.num_classes for task in self.tasks), default=0)

    def to(self, device: torch.device | str) -> Scenario:
        """Return the scenario with all tensors on ``device``; shared images move once."""
        return Scenario(self.name, [task.to(device) for task in self.tasks])

    def describe(self) -> str:
        """Return a plain-text table of the tasks: classes, local labels and sizes."""
        header = ("task", "name", "global classes", "local labels", "train", "val", "test")
        rows = [
            (
                str(number),
                task.name,
                _ranges(task.classes),
                _ranges(range(task.num_classes)),
                str(len(task.train)),
                str(len(task.validation)),
                str(len(task.test)),
            )
            for number, task in enumerate(self.tasks)
        ]
        widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
        numeric = {0, 4, 5, 6}
        lines = [
            "  ".join(
                cell.rjust(width) if place in numeric else cell.ljust(width)
                for place, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in (header, *rows)
        ]
        shape = " x ".join(map(str, self.input_shape))
        title = f"{self.name}: {len(self)} tasks, input {shape}, head {self.num_classes}"
        return "\n".join([title, *lines])

    def __len__(self) -> int:
        return len(self.tasks)

    @overload
    def __getitem__(self, place: int) -> Task: ...

    @overload
    def __getitem__(self, place: slice) -> Scenario: ...

    def __getitem__(self, place: int | slice) -> Task | Scenario:
        if isinstance(place, slice):
            part = copy(self)
            part.tasks = self.tasks[place]
            return part
        return self.tasks[place]

    def __repr__(self) -> str:
        return (
            f"Scenario({self.name!r}, {len(self)} tasks, input_shape={self.input_shape}, "
            f"num_classes={self.num_classes})"
        )


def _ranges(numbers: Sequence[int]) -> str:
    """Write ascending neighbours as a range: (0, 1, 2, 7) becomes "0-2, 7"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
