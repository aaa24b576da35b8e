"""What every method shares: tasks and their life cycle, steps, and what others may ask of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from hypermask_fast.backends.compiled import Compiler
from hypermask_fast.methods.protocol import Losses, ParameterGroup, Phase
from hypermask_fast.methods.tasks import TaskList, TaskRecord


def ordinary_step(
    losses_of: Callable[..., Losses],
    x: Tensor,
    y: Tensor,
    task: int,
    optimizers: Mapping[str, Optimizer],
    before_update: Callable[[], None] | None = None,
) -> Losses:
    """Take the step of :meth:`Learner.step` with losses of ``losses_of``."""
    for optimizer in optimizers.values():
        optimizer.zero_grad(set_to_none=True)
    losses = losses_of(x, y, task, optimizer=next(iter(optimizers.values()), None))
    if before_update is not None:
        before_update()
    losses.total.backward()
    for optimizer in optimizers.values():
        optimizer.step()
    return losses


class Learner(nn.Module):
    """A network that learns tasks one after the other.

    The life of a task: :meth:`add_task` (it can be evaluated from then on), :meth:`begin_task`,
    :meth:`losses` or :meth:`step` for each batch, :meth:`end_task`. A method overrides what it does
    differently, :meth:`losses`, :meth:`activated` and :meth:`task_weights` at least.

    Args:
        net: The target network.
        capacity: Tasks that there are rows for at first.

    Attributes:
        phase: Name of the phase that the current task is in.
        capacity: Tasks that there are rows for; it doubles when a task finds none left.
        steps_taken: Calls of :meth:`losses` in the current task, where a method counts them. Set it
            where a CUDA graph repeated what a call does on the device.
    """

    steps_taken: int = 0

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

    def parameter_groups(self, phase: str = "train") -> Sequence[ParameterGroup]:
        """Return what the optimizers of a phase train. Default: all that has gradients, alike."""
        return [ParameterGroup([p for p in self.parameters() if p.requires_grad])]

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
        if steps < 0:
            raise ValueError(f"steps is {steps}; give 0 or more")
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

    def losses(
        self, x: Tensor, y: Tensor, task: int, *, optimizer: Optimizer | None = None
    ) -> Losses:
        """Return the losses of a batch of the current task; call ``.total.backward()``.

        Args:
            x: Inputs (batch, ...).
            y: Local labels int64 (batch,).
            task: The id given to :meth:`begin_task`.
            optimizer: What updates parameters in the backward pass of these losses, if one does.
        """
        raise NotImplementedError

    def step(
        self,
        x: Tensor,
        y: Tensor,
        task: int,
        optimizers: Mapping[str, Optimizer],
        before_update: Callable[[], None] | None = None,
    ) -> Losses:
        """Learn from a batch: forward, backward and updates. Default: of all optimizers at once.

        Args:
            x, y, task: As in :meth:`losses`.
            optimizers: Over :meth:`parameter_groups`, by name; the first one is given to
                :meth:`losses`.
            before_update: Called after the forward, before anything is updated.
        """
        return ordinary_step(self.losses, x, y, task, optimizers, before_update)

    def activated(
        self, task: int, weights: Mapping[str, Tensor] | None = None
    ) -> AbstractContextManager[nn.Module]:
        """Return a context in which :attr:`net` is the task's network, for many batches.

        Args:
            task: A task that was added.
            weights: Target weights to use, from :meth:`task_weights`; default: the present ones.

        Raises:
            ValueError: The task was not added, or the names of the weights do not fit.
        """
        raise NotImplementedError

    def task_weights(self, task: int, *, in_step: bool = False) -> dict[str, Tensor]:
        """Return copies of the target parameters that a task uses, by name.

        Args:
            task: A task that was added.
            in_step: As the last step used them, where a method changes its weights over the steps.

        Raises:
            ValueError: The task was not added.
        """
        raise NotImplementedError

    def install_norms(self, net: nn.Module, task: int) -> None:
        """Give a plain copy of the target network what a task needs beside its weights."""

    def features(self, x: Tensor, task: int) -> Tensor:
        """Return what the last layer of the task's network reads, (batch, features).

        The last layer is the module with parameters of its own that runs last.

        Args:
            x: Inputs (batch, ...).
            task: A task that was added.
        """
        self._prepare(x)
        read: list[Tensor] = []
        layers = [
            m for m in self.net.modules() if next(m.parameters(recurse=False), None) is not None
        ]
        hooks = [
            m.register_forward_pre_hook(lambda _, given: read.append(given[0])) for m in layers
        ]
        try:
            with self.activated(self._tasks.checked(task)) as net:
                net(x)
        finally:
            for hook in hooks:
                hook.remove()
        return read[-1]

    @torch.no_grad()
    def all_outputs(self, x: Tensor) -> Tensor:
        """Return the logits of every task that was added, (tasks, batch, outputs), in id order.

        Args:
            x: Inputs (batch, ...).
        """
        self._check_devices(inputs=x)
        return torch.stack([self._forward_one(x, task) for task in range(len(self.tasks))])

    def blended(self, alpha: Tensor) -> AbstractContextManager[nn.Module]:
        """Return a context in which :attr:`net` has a blend of all tasks' weights.

        Args:
            alpha: (tasks,), a factor for each task that was added; gradients flow to it.
        """
        raise NotImplementedError

    def memory_parts(self) -> Mapping[str, Sequence[Tensor]]:
        """Return the tensors of the learner by the name that a plan of the memory shows them under.

        Those that are not named count as parts of the target network.
        """
        return {}

    def facts(self) -> Mapping[str, int]:
        """Return the numbers that tell the size of a learner, by name, for a plan."""
        return {}

    def compile_steps(self, compiler: Compiler) -> None:
        """Run what :meth:`losses` spends its time in through torch.compile, where that is enabled.

        Args:
            compiler: Says where it is.
        """

    def fixed_in_graph(self) -> tuple[object, ...]:
        """Return the settings that a CUDA graph of :meth:`losses` would not see change."""
        return self._current, self.phase, self.training, self.capacity

    def manifest(self) -> list[dict[str, Any]]:
        """Return name, shape, offset, masked and reason of every target parameter, for JSON."""
        raise NotImplementedError

    def forward(self, x: Tensor, task: int | Tensor) -> Tensor:
        """Return the logits (batch, outputs); outputs a task has no class for are -inf.

        The rows of several tasks are run task by task.

        Args:
            x: Inputs (batch, ...).
            task: An id, or an integer tensor: 0-d, or (batch,) with an id for each row.

        Raises:
            ValueError: A task was not added, there is not one id for each row, or tasks are mixed
                where the rows of a batch depend on each other.
            TypeError: The ids are not integers.
        """
        self._check_devices(inputs=x)
        if not isinstance(task, Tensor) or task.dim() == 0:
            return self._forward_one(x, self._tasks.checked(task))
        ids = self._tasks.checked_rows(task, x)
        if len(ids) == 1:
            return self._forward_one(x, ids[0])
        self._check_mixing()
        rows = [(task == i).nonzero().flatten() for i in ids]
        parts = [self._forward_one(x[row], i) for i, row in zip(ids, rows, strict=True)]
        return torch.cat(parts)[torch.cat(rows).argsort()]

    def _check_mixing(self) -> None:
        """Raise where rows of several tasks must not share a batch."""

    def _prepare(self, x: Tensor) -> None:
        """Look at the inputs of a forward, where a method has to."""

    def _forward_one(self, x: Tensor, task: int) -> Tensor:
        self._prepare(x)
        with self.activated(task) as net:
            return self._tasks.own_outputs(net(x), task)

    def _check_devices(self, **values: Tensor) -> None:
        device = next(self.parameters()).device
        for name, value in values.items():
            if value.device != device:
                raise ValueError(
                    f"{name} are on {value.device} and the learner on {device}; move them to one "
                    "device"
                )

    def _checked_batch(self, x: Tensor, y: Tensor, task: int) -> int:
        task = self._tasks.checked(task)
        if task != self._current:
            state = "no task" if self._current is None else f"task {self._current}"
            raise RuntimeError(
                f"losses of task {task} were asked for while {state} is being learned; call "
                f"begin_task({task}) first"
            )
        self._check_devices(inputs=x, labels=y)
        if y.shape != x.shape[:1] or y.dtype != torch.int64:
            raise ValueError(
                f"labels are {y.dtype} of shape {tuple(y.shape)} for inputs of shape "
                f"{tuple(x.shape)}; give int64 labels, one for each row"
            )
        if not len(y):
            raise ValueError(f"inputs have shape {tuple(x.shape)}; a loss needs at least one row")
        return task

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
        self._tasks.load(state["tasks"])
        self._make_room()
        self._learned = list(state["learned"])
        self._current = state["current"]
        self.phase = state.get("phase", "train")
