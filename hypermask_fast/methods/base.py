"""What every method shares: tasks and their life cycle, steps, and what others may ask of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from hypermask_fast.backends.compiled import Compiler
from hypermask_fast.conversion.entries import Entry, manifest
from hypermask_fast.errors import shown
from hypermask_fast.lazy import offered
from hypermask_fast.methods.batches import (
    WithWeights,
    check_devices,
    check_labels,
    check_optimizers,
    check_weights,
    read_by_last_layer,
    run,
    sum_of,
)
from hypermask_fast.methods.evaluating import modes_of
from hypermask_fast.methods.life import TaskLife
from hypermask_fast.methods.protocol import Losses, ParameterGroup, Prediction
from hypermask_fast.optim.factored_adam import FactoredAdam
from hypermask_fast.optim.rows import mark_table


def ordinary_step(
    losses_of: Callable[..., Losses],
    x: Tensor,
    y: Tensor,
    task: int,
    optimizers: Mapping[str, Optimizer],
    before_update: Callable[[], None] | None = None,
) -> Losses:
    """Take the step of :meth:`Learner.step` with losses of ``losses_of``."""
    check_optimizers(optimizers)
    for optimizer in optimizers.values():
        optimizer.zero_grad(set_to_none=True)
    in_backward = (o for o in optimizers.values() if isinstance(o, FactoredAdam))
    updates = next((o for o in in_backward if o.steps_in_backward), None)
    losses = losses_of(x, y, task, optimizer=updates)
    if before_update is not None:
        before_update()
    losses.total.backward()
    for optimizer in optimizers.values():
        optimizer.step()
    return losses


class Learner(TaskLife):
    """A network that learns tasks one after the other.

    The life of a task: :meth:`add_task` (it can be evaluated from then on), :meth:`begin_task`,
    :meth:`losses` or :meth:`step` for each batch, :meth:`end_task`. A method overrides what it does
    differently; without that it is a plain network that all tasks share and nothing protects.

    Args:
        net: The target network.
        capacity: Tasks that there are rows for at first.

    Attributes:
        takes_input_shape: Whether the constructor takes ``input_shape=``, that of one input.
        steps_taken: Calls of :meth:`losses` in the current task, where a method counts them. Set it
            where a CUDA graph repeated what a call does on the device.
    """

    takes_input_shape: ClassVar[bool] = False

    steps_taken: int = 0
    # What is known to run through the network, of batches.signature.
    _input: tuple[Any, ...] | None = None

    def parameter_groups(self, phase: str = "train") -> Sequence[ParameterGroup]:
        """Return what the optimizers of a phase train. Default: all that has gradients, alike."""
        return [ParameterGroup([p for p in self.parameters() if p.requires_grad])]

    def begin_phase(self, name: str) -> None:
        super().begin_phase(name)
        for group in self.parameter_groups(name):
            for table in group.params if group.row_sparse else ():
                mark_table(table)

    def losses(
        self, x: Tensor, y: Tensor, task: int, *, optimizer: Optimizer | None = None
    ) -> Losses:
        """Return the losses of a batch of the current task; call ``.total.backward()``.

        Default: the mean cross-entropy of the task's network.

        Args:
            x: Inputs (batch, ...).
            y: Local labels int64 (batch,).
            task: The id given to :meth:`begin_task`.
            optimizer: What updates parameters in the backward pass of these losses, if one does.

        Raises:
            RuntimeError: The task was not begun.
            ValueError: Shapes, devices or labels do not fit.
        """
        task = self._checked_batch(x, y, task)
        with modes_of(self):
            outputs = self._forward_one(x, task)
        loss = self._task_loss(outputs, y, task)
        return Losses(loss, loss, outputs, {})

    def _task_loss(self, outputs: Tensor, y: Tensor, task: int) -> Tensor:
        self._tasks.check_labels(y, task, outputs.shape[-1])
        return F.cross_entropy(outputs, y)

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
            optimizers: Over :meth:`parameter_groups`, by name; one that updates a head in the
                backward pass is given to :meth:`losses`.
            before_update: Called after the forward, before anything is updated.
        """
        return ordinary_step(self.losses, x, y, task, optimizers, before_update)

    def activated(
        self, task: int, weights: Mapping[str, Tensor] | None = None
    ) -> AbstractContextManager[nn.Module]:
        """Return a context in which what it gives is the task's network, for many batches.

        Default: :attr:`net` as it is.

        Args:
            task: A task that was added.
            weights: Target weights to use, from :meth:`task_weights`; default: the present ones.

        Raises:
            ValueError: The task was not added, or the names of the weights do not fit.
        """
        self._tasks.checked(task)
        check_weights(weights)
        return nullcontext(self.net if weights is None else WithWeights(self.net, weights))

    def task_weights(self, task: int, *, in_step: bool = False) -> dict[str, Tensor]:
        """Return copies of the target parameters that a task uses, by name.

        Default: those of :attr:`net`, the same for every task.

        Args:
            task: A task that was added.
            in_step: As the last step used them, where a method changes its weights over the steps.

        Raises:
            ValueError: The task was not added.
        """
        self._tasks.checked(task)
        return {name: p.detach().clone() for name, p in self.net.named_parameters()}

    def install_norms(self, net: nn.Module, task: int) -> None:
        """Give a plain copy of the target network what a task needs beside its weights."""

    def features(self, x: Tensor, task: int, batch_size: int | None = None) -> Tensor:
        """Return what the last layer of the task's network reads, (batch, features).

        The last layer is the module with parameters of its own that runs last.

        Args:
            x: Inputs (batch, ...).
            task: A task that was added.
            batch_size: Rows that run together. Default: all.
        """
        check_devices(self._device, inputs=x)
        task = self._tasks.checked(task)
        self._prepare(x)
        with self.activated(task) as net:
            return torch.cat(
                [
                    read_by_last_layer(net, partial(run, net, rows, self._input))
                    for rows in x.split(batch_size or max(1, len(x)))
                ]
            )

    @torch.no_grad()
    def all_outputs(
        self, x: Tensor, tasks: Sequence[int] | None = None, batch_size: int | None = None
    ) -> Tensor:
        """Return the logits of several tasks, (tasks, batch, outputs), in their order.

        Outputs that a task has no class for are -inf. One forward for all tasks where a method has
        one that was measured to be faster, else one for each.

        Args:
            x: Inputs (batch, ...).
            tasks: Their ids. Default: all that were added.
            batch_size: Rows that run together; a task's weights are made once for all of them.
                Default: all.

        Raises:
            ValueError: No task was added, or one that is given was not.
        """
        check_devices(self._device, inputs=x)
        given = range(len(self.tasks)) if tasks is None else tasks
        ids = [self._tasks.checked(task) for task in given]
        if not ids:
            raise ValueError("no task was added; call add_task() first")
        self._prepare(x)
        batches = x.split(batch_size or max(1, len(x)))
        found: list[Tensor] = []
        for rows in batches:
            outputs = self._outputs_at_once(rows, ids)
            if outputs is None:
                return torch.stack([self._forward_batches(batches, task) for task in ids])
            found.append(outputs.unflatten(0, (len(ids), len(rows))))
        own = self._tasks.own_outputs
        return torch.stack(
            [own(each, task) for each, task in zip(torch.cat(found, 1), ids, strict=True)]
        )

    def _forward_batches(self, batches: Sequence[Tensor], task: int) -> Tensor:
        with self.activated(task) as net:
            outputs = torch.cat([run(net, rows, self._input) for rows in batches])
        return self._tasks.own_outputs(outputs, task)

    def competing_outputs(
        self, x: Tensor, tasks: Sequence[int], batch_size: int | None = None
    ) -> Tensor:
        """Return :meth:`all_outputs` by which unknown tasks are told apart. Default: just those."""
        return self.all_outputs(x, tasks, batch_size)

    def predict(self, x: Tensor, score: Any = "entropy", **options: Any) -> Prediction:
        """Predict tasks and classes of inputs whose tasks are not known, in evaluation mode.

        Args:
            x: Inputs (batch, ...).
            score: How tasks are told apart: "entropy", "margin", "energy", "one_shot", "binary", or
                a score that was fitted, such as ``Ridge().fitted(learner, data)``. Default
                "entropy".
            options: Of :func:`hypermask_fast.inference.predict.predict`.

        Raises:
            ValueError, ConfigError, TypeError: As there.
        """
        made: Prediction = offered("predict")(self, x, score, **options)
        return made

    def blended(self, alpha: Tensor) -> AbstractContextManager[nn.Module]:
        """Return a context in which what it gives has a blend of all tasks' weights.

        Args:
            alpha: (tasks,), a factor for each task that was added; gradients flow to it.

        Raises:
            ValueError: There is not one factor for each task.
        """
        self._tasks.check_factors(alpha)
        check_devices(self._device, alpha=alpha)
        weights = sum_of([self.task_weights(task) for task in range(len(alpha))], alpha)
        return nullcontext(WithWeights(self.net, weights))

    def memory_parts(self) -> Mapping[str, Sequence[Tensor]]:
        """Return the tensors of the learner by the name that a plan of the memory shows them under.

        Those that are not named count as parts of the target network.
        """
        return {"weights at the start of the task": list((self._start or {}).values())}

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
        """Return name, shape, offset, masked and reason of every target parameter, for JSON.

        Default: none has a mask.
        """
        return manifest(
            [Entry(n, tuple(p.shape), -1, False, "shared") for n, p in self.net.named_parameters()]
        )

    def forward(self, x: Tensor, task: int | Tensor) -> Tensor:
        """Return the logits (batch, outputs); outputs a task has no class for are -inf.

        The rows of several tasks are run task by task, or, without gradients, in one forward where
        a method has one that was measured to be faster.

        Args:
            x: Inputs (batch, ...).
            task: An id, or an integer tensor: 0-d, or (batch,) with an id for each row.

        Raises:
            ValueError: A task was not added, there is not one id for each row, or tasks are mixed
                where the rows of a batch depend on each other.
            TypeError: The ids are not integers.
        """
        check_devices(self._device, inputs=x)
        if not isinstance(task, Tensor) or task.dim() == 0:
            return self._forward_one(x, self._tasks.checked(task))
        ids = self._tasks.checked_rows(task, x)
        if len(ids) == 1:
            return self._forward_one(x, ids[0])
        self._check_mixing()
        self._prepare(x)
        known = torch.tensor(ids, device=x.device)
        places = torch.searchsorted(known, task.to(known))
        outputs = self._outputs_at_once(x, ids, places)
        if outputs is not None:
            return self._tasks.own_outputs_of_rows(outputs, ids, places)
        rows = [(task == i).nonzero().flatten() for i in ids]
        parts = [self._forward_one(x[row], i) for i, row in zip(ids, rows, strict=True)]
        return torch.cat(parts)[torch.cat(rows).argsort()]

    def _check_mixing(self) -> None:
        """Raise where rows of several tasks must not share a batch."""

    def check_network(self) -> None:
        """Raise RuntimeError where :attr:`net` is not the network the learner was built over."""

    def _prepare(self, x: Tensor) -> None:
        """Look at the inputs of a forward, where a method has to."""

    def _forward_one(self, x: Tensor, task: int) -> Tensor:
        self._prepare(x)
        outputs = self._outputs_at_once(x, [task])
        if outputs is None:
            with self.activated(task) as net:
                outputs = run(net, x, self._input)
        return self._tasks.own_outputs(outputs, task)

    def _outputs_at_once(
        self, x: Tensor, ids: Sequence[int], task_of_row: Tensor | None = None
    ) -> Tensor | None:
        """Return the network's outputs for several tasks in one forward, where that is faster.

        Args:
            x: Inputs (batch, ...).
            ids: Of T tasks that were added.
            task_of_row: (batch,) int64, each row's place in ``ids``. Default: every row runs under
                every task.

        Returns:
            (batch, outputs), or (T * batch, outputs), those of the first task first. None where
            the tasks are to be run one by one.
        """
        return None

    @property
    def _device(self) -> torch.device:
        return next(self.parameters()).device

    def _checked_batch(self, x: Tensor, y: Tensor, task: int) -> int:
        task = self._tasks.checked(task)
        if task != self._current:
            state = "no task" if self._current is None else f"task {self._current}"
            raise RuntimeError(
                f"losses of task {task} were asked for while {state} is being learned; call "
                f"begin_task({task}) first"
            )
        check_devices(self._device, inputs=x, labels=y)
        check_labels(x, y)
        return task


def check_learner(learner: Learner) -> Learner:
    """Return a learner; raise TypeError where it is none."""
    if not isinstance(learner, Learner):
        raise TypeError(
            f"learner is {shown(learner)}; give a learner of this package, such as HyperMask(net)"
        )
    return learner
