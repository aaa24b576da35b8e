"""What every method shares: tasks and their life cycle, and batches of one or several tasks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hypermask_fast.errors import nearest


class Losses(NamedTuple):
    """What a training forward returns; all but the logits are 0-d.

    Attributes:
        total: What to call ``backward`` on.
        task: Mean cross-entropy of the batch.
        output_reg: The hypernetwork's output regulariser, a mean over earlier tasks.
        weight_reg: The drift of the target weights.
        logits: (batch, outputs).
    """

    total: Tensor
    task: Tensor
    output_reg: Tensor
    weight_reg: Tensor
    logits: Tensor


@dataclass(frozen=True)
class TaskRecord:
    """A task that was added: its name and the classes behind its first outputs (or None)."""

    name: str
    classes: tuple[int, ...] | None


class Learner(nn.Module):
    """A network that learns tasks one after the other.

    The life of a task: :meth:`add_task` (it can be evaluated from then on), :meth:`begin_task`,
    :meth:`losses` for each batch, :meth:`end_task`.

    Args:
        net: The target network.
        capacity: The largest number of tasks.
    """

    def __init__(self, net: nn.Module, capacity: int) -> None:
        super().__init__()
        self.net = net
        self.capacity = capacity
        self._tasks: list[TaskRecord] = []
        self._learned: list[int] = []
        self._current: int | None = None

    @property
    def tasks(self) -> Sequence[TaskRecord]:
        """The tasks that were added; the place in the list is the id."""
        return tuple(self._tasks)

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
            ValueError: The name is taken, or the capacity is used up.
        """
        name = f"task {len(self._tasks)}" if name is None else name
        if len(self._tasks) == self.capacity:
            raise ValueError(
                f"all {self.capacity} rows of the embedding table are used; build the learner "
                f"with capacity={2 * self.capacity}"
            )
        if any(record.name == name for record in self._tasks):
            raise ValueError(f"a task named {name!r} was added already; choose another name")
        self._tasks.append(TaskRecord(name, None if classes is None else tuple(classes)))
        return len(self._tasks) - 1

    def task_id(self, name: str) -> int:
        """Return the id of the task called ``name``.

        Raises:
            ValueError: There is none.
        """
        names = [record.name for record in self._tasks]
        if name not in names:
            raise ValueError(
                f"no task is called {name!r}{nearest(name, names)}; the tasks are {names}"
            )
        return names.index(name)

    def tables(self) -> list[nn.Parameter]:
        """Return the parameters with a row for each task, which weight decay must leave alone."""
        return []

    def begin_task(self, task: int) -> None:
        """Start learning a task: what earlier tasks need kept is recorded now.

        Raises:
            ValueError: The task was not added.
            RuntimeError: Another task has not been ended.
        """
        task = self._checked(task)
        if self._current is not None:
            raise RuntimeError(
                f"task {self._current} is still being learned; call end_task() before "
                f"begin_task({task})"
            )
        self._current = task

    def end_task(self) -> None:
        """Finish the current task; later tasks protect it.

        Raises:
            RuntimeError: No task was begun.
        """
        if self._current is None:
            raise RuntimeError("no task is being learned; call begin_task() before end_task()")
        if self._current not in self._learned:
            self._learned.append(self._current)
        self._current = None

    def losses(self, x: Tensor, y: Tensor, task: int) -> Losses:
        """Return the losses of a batch of the current task; call ``.total.backward()``.

        Args:
            x: Inputs (batch, ...).
            y: Local labels int64 (batch,).
            task: The id given to :meth:`begin_task`.
        """
        raise NotImplementedError

    def activated(self, task: int) -> AbstractContextManager[nn.Module]:
        """Return a context in which :attr:`net` is the task's network, for many batches."""
        raise NotImplementedError

    def forward(self, x: Tensor, task: int | Tensor) -> Tensor:
        """Return the logits (batch, outputs); outputs a task has no class for are -inf.

        Args:
            x: Inputs (batch, ...).
            task: An id, or an integer tensor: 0-d, or (batch,) with an id for each row.

        Raises:
            ValueError: A task was not added, or there is not one id for each row.
            TypeError: The ids are not integers.
        """
        if isinstance(task, Tensor) and task.dim() > 0:
            return self._forward_mixed(x, task)
        task = self._checked(task)
        with self.activated(task) as net:
            return self._own_outputs(net(x), task)

    def _forward_mixed(self, x: Tensor, task: Tensor) -> Tensor:
        if task.shape != x.shape[:1]:
            raise ValueError(
                f"task has shape {tuple(task.shape)} for a batch of {len(x)}; give one id, or one "
                "for each row"
            )
        if task.is_floating_point() or task.dtype == torch.bool:
            raise TypeError(f"task is {task.dtype}; give integers")
        ids = task.unique().tolist()
        if not ids:
            raise ValueError("the batch and its task ids are empty; give one id for an empty batch")
        rows = [(task == i).nonzero().flatten() for i in ids]
        parts = [self(x[row], i) for i, row in zip(ids, rows, strict=True)]
        return torch.cat(parts)[torch.cat(rows).argsort()]

    def _checked(self, task: int | Tensor) -> int:
        if isinstance(task, Tensor):
            if task.is_floating_point() or task.dtype == torch.bool:
                raise TypeError(f"task is {task.dtype}; give an integer")
            task = int(task)
        if isinstance(task, bool) or not isinstance(task, int):
            raise TypeError(f"task is {task!r}; give the id that add_task() returned")
        if not 0 <= task < len(self._tasks):
            known = f"0 to {len(self._tasks) - 1} were" if self._tasks else "none was"
            raise ValueError(f"task {task} was not added ({known}); call add_task() first")
        return task

    def _checked_batch(self, x: Tensor, y: Tensor, task: int) -> int:
        task = self._checked(task)
        if task != self._current:
            state = "no task" if self._current is None else f"task {self._current}"
            raise RuntimeError(
                f"losses of task {task} were asked for while {state} is being learned; call "
                f"begin_task({task}) first"
            )
        if y.shape != x.shape[:1] or y.dtype != torch.int64:
            raise ValueError(
                f"labels are {y.dtype} of shape {tuple(y.shape)} for inputs of shape "
                f"{tuple(x.shape)}; give int64 labels, one for each row"
            )
        device = next(self.parameters()).device
        for name, value in (("inputs", x), ("labels", y)):
            if value.device != device:
                raise ValueError(
                    f"{name} are on {value.device} and the learner on {device}; move them to one "
                    "device"
                )
        return task

    def _own_outputs(self, logits: Tensor, task: int) -> Tensor:
        classes = self._tasks[task].classes
        if classes is None or len(classes) == logits.shape[-1]:
            return logits
        if len(classes) > logits.shape[-1]:
            raise ValueError(
                f"task {task} has {len(classes)} classes and the network {logits.shape[-1]} "
                "outputs; build it with as many outputs as the largest task has classes"
            )
        foreign = torch.arange(logits.shape[-1], device=logits.device) >= len(classes)
        return logits.masked_fill(foreign, -torch.inf)

    def task_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return what ``state_dict`` lacks to continue in the middle of a task: tensors and JSON."""
        state = {
            "tasks": [asdict(record) for record in self._tasks],
            "learned": list(self._learned),
            "current": self._current,
        }
        return {}, state

    def load_task_state(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Restore what :meth:`task_state` returned."""
        self._tasks = [
            TaskRecord(r["name"], None if r["classes"] is None else tuple(r["classes"]))
            for r in state["tasks"]
        ]
        self._learned = list(state["learned"])
        self._current = state["current"]


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module in evaluation mode without gradients, and back afterwards."""
    modes = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for m, mode in modes:
            m.training = mode
