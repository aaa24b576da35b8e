"""What the inference of unknown tasks has in common: scores of tasks, and who competes."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Self, TypeVar

import torch
from torch import Tensor

from hypermask_fast.errors import InferenceError, shown
from hypermask_fast.fields import checked, document, kinds_of
from hypermask_fast.methods.base import Learner

_Value = TypeVar("_Value")

Batches = Iterable[tuple[Tensor, Tensor]]
"""Inputs (b, ...) and local labels int64 (b,)."""

UNKNOWN = -1
"""In place of a task or class: no task's score is high enough."""


class Evidence(NamedTuple):
    """What a score tells of a batch.

    Attributes:
        scores: (tasks, batch) float64; the task of the highest is the one to choose.
        outputs: (tasks, batch) int64, each task's class as its place in the task; None: what the
            chosen task's network says, in a forward of its own.
    """

    scores: Tensor
    outputs: Tensor | None


class Score(ABC):
    """A way to tell how likely a batch's rows are of each task; see `registry` for the names.

    One with options is a frozen dataclass whose fields :func:`hypermask_fast.fields.setting` makes:
    they are checked, told in its docstring, and options of the command line.

    Attributes:
        needs_training_data: Whether :meth:`fitted` has to be called before.
        takes_several: Whether networks of several inputs can be told apart by it. Default True.
    """

    needs_training_data: ClassVar[bool] = False
    takes_several: ClassVar[bool] = True

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        document(cls)

    def __post_init__(self) -> None:
        kinds = kinds_of(type(self))
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            if "help" in field.metadata:
                value = getattr(self, field.name)
                value = checked(field.name, field.metadata, kinds[field.name], value)
                object.__setattr__(self, field.name, value)

    @property
    def shares_task(self) -> bool:
        """Whether the rows that run together get one task."""
        return False

    def fitted(self, learner: Learner, data: Mapping[Any, Batches]) -> Self:
        """Return the score with what it has to know of training data. Default: nothing.

        Args:
            learner: The learner, which has learned the tasks.
            data: Batches by task id or name.
        """
        return self

    def memory_bytes(self) -> int:
        """Return the bytes that :meth:`fitted` takes at most, where they are many. Default: 0."""
        return 0

    @abstractmethod
    def evidence(self, learner: Learner, x: Any, tasks: Sequence[int], batch_size: int) -> Evidence:
        """Return scores of inputs.

        Called without gradients, in the mode that the learner is to run in. A score that tells one
        task for all rows of a batch, such as that of a blend's gradient, repeats it for each row.

        Args:
            learner: The learner.
            x: Inputs (batch, ...); several where :attr:`takes_several`.
            tasks: Ids of the tasks that compete.
            batch_size: Rows that run together.

        Raises:
            ConfigError: The tasks cannot be told apart by this score.
        """

    def spread(self, scores: Tensor) -> Tensor:
        """Return an increasing function of scores which an affine function calibrates well.

        Default: themselves. What crowds at an end of its range is to be spread out.
        """
        return scores


def by_id(learner: Learner, data: Mapping[Any, _Value]) -> dict[int, _Value]:
    """Return what is given by task with the ids of the tasks that are given by name.

    Raises:
        ValueError: No task has the name, or one is given twice.
    """
    found: dict[int, _Value] = {}
    for task, value in data.items():
        number = learner.task_id(task)
        if number in found:
            raise ValueError(f"task {number} is given twice, in {list(data)}; give each once")
        found[number] = value
    return found


def competing(learner: Learner, tasks: Sequence[int | str] | None) -> tuple[int, ...]:
    """Return ids of the tasks that compete, ascending. Default: those that were learned.

    Raises:
        ValueError: There is none, one was not added, or one is given twice.
        TypeError: An id is no integer.
    """
    if tasks is None:
        ids = sorted(learner.learned)
        if not ids:
            raise ValueError(
                "no task was learned to the end, so none can be inferred; call end_task() after "
                "training, or give tasks="
            )
        return tuple(ids)
    ids = sorted(map(learner.task_id, tasks))
    if len(set(ids)) != max(1, len(ids)):
        raise ValueError(f"tasks are {shown(tasks)}; give at least one, and each once")
    return tuple(ids)


def check_finite(values: Tensor, tasks: Sequence[int], what: str) -> None:
    """Raise InferenceError where a task's values, (tasks, batch), are not finite.

    A comparison with NaN would choose its task.
    """
    wrong = ~values.isfinite()
    if bool(wrong.any()):
        place = int(wrong.any(1).nonzero()[0])
        raise InferenceError(
            f"the {what} of task {tasks[place]} is not finite in {int(wrong[place].sum())} of "
            f"{values.shape[1]} rows; the inputs or the weights are not finite"
        )


def minus_log(scores: Tensor) -> Tensor:
    """Return ``-log(-s)`` of scores s of at most 0; those above the smallest float64 are as it."""
    return -(-scores).clamp(min=torch.finfo(torch.float64).tiny).log()


def check_score(score: object) -> Score:
    """Return a score; raise TypeError where it is none."""
    if not isinstance(score, Score):
        raise TypeError(f"score is {shown(score)}; give its name or a Score, such as Entropy()")
    return score


def highest(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Return the highest of scores (tasks, batch) and its place, the first where several are."""
    best = scores.amax(0)
    places = torch.arange(len(scores), device=scores.device)[:, None]
    return best, places.where(scores == best, len(scores)).amin(0)
