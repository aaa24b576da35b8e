"""What a learner's network says of inputs, under a task, several tasks, or a blend of all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from hypermask_fast.lazy import offered
from hypermask_fast.methods.batches import (
    WithWeights,
    check_devices,
    check_weights,
    read_by_last_layer,
    run,
    sum_of,
)
from hypermask_fast.methods.inputs import Batch, Given, called_with, inputs_of
from hypermask_fast.methods.life import TaskLife
from hypermask_fast.methods.outputs import cat, stack, take
from hypermask_fast.methods.protocol import Prediction
from hypermask_fast.methods.tasks import TaskId
from hypermask_fast.methods.view import TaskNetwork

_LAST: Any = object()


class TaskForwards(TaskLife):
    """A network that runs as the network of any of its tasks.

    Inputs are a tensor (batch, ...), a tuple or list of several inputs, or a dict of inputs by
    keyword. Outputs are what the network puts out.
    """

    alone: ClassVar[str] = "its own weights, which all tasks share"

    # What is known to run through the network, of inputs.signature.
    _input: tuple[Any, ...] | None = None

    def activated(
        self, task: TaskId, weights: Mapping[str, Tensor] | None = None
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

    def task_weights(self, task: TaskId, *, in_step: bool = False) -> dict[str, Tensor]:
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

    def install_norms(self, net: nn.Module, task: TaskId) -> None:
        """Give a plain copy of the target network what a task needs beside its weights."""

    def features(self, x: Given, task: TaskId, batch_size: int | None = None) -> Tensor:
        """Return what the last layer of the task's network reads, (batch, features).

        The last layer is the module with parameters of its own that runs last.

        Args:
            x: Inputs (batch, ...).
            task: A task that was added.
            batch_size: Rows that run together. Default: all.
        """
        x = self._checked_inputs(x)
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
        self, x: Given, tasks: Sequence[TaskId] | None = None, batch_size: int | None = None
    ) -> Any:
        """Return the logits of several tasks, (tasks, batch, outputs), in their order.

        Outputs that a task has no class for are -inf. One forward for all tasks where a method has
        one that was measured to be faster, else one for each. Of other outputs, every tensor gets a
        first dimension of the tasks.

        Args:
            x: Inputs (batch, ...).
            tasks: Their ids or names. Default: all that were added.
            batch_size: Rows that run together; a task's weights are made once for all of them.
                Default: all.

        Raises:
            ValueError: No task was added, or one that is given was not.
        """
        x = self._checked_inputs(x)
        ids = self._ids_of(tasks)
        if not ids:
            raise ValueError("no task was added; call add_task() first")
        self._prepare(x)
        batches = x.split(batch_size or max(1, len(x)))
        found: list[Tensor] = []
        for rows in batches:
            outputs = self._outputs_at_once(rows, ids)
            if not isinstance(outputs, Tensor):
                return stack([self._forward_batches(batches, task) for task in ids])
            found.append(outputs.unflatten(0, (len(ids), len(rows))))
        own = self._tasks.own_outputs
        return torch.stack(
            [own(each, task) for each, task in zip(torch.cat(found, 1), ids, strict=True)]
        )

    def _forward_batches(self, batches: Sequence[Batch], task: int) -> Any:
        with self.activated(task) as net:
            outputs = cat([run(net, rows, self._input) for rows in batches])
        return self._tasks.own_outputs(outputs, task)

    def competing_outputs(
        self, x: Given, tasks: Sequence[TaskId], batch_size: int | None = None
    ) -> Any:
        """Return :meth:`all_outputs` by which unknown tasks are told apart. Default: just those."""
        return self.all_outputs(x, tasks, batch_size)

    def predict(self, x: Given, score: Any = "entropy", **options: Any) -> Prediction:
        """Predict tasks and classes of inputs whose tasks are not known, in evaluation mode.

        Args:
            x: Inputs (batch, ...).
            score: How tasks are told apart: "entropy", "margin", "energy", "max_logit", "one_shot",
                "binary", of HyperInterval "box_entropy", of HNET+TIR "tir"; or a score that was
                fitted, such as ``Ridge().fitted(learner, data)``. Default "entropy".
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

    def forward(self, *inputs: Any, task: TaskId | Sequence[str] = _LAST, **kwargs: Any) -> Any:
        """Return the logits (batch, outputs); outputs a task has no class for are -inf.

        What else a network puts out, tuples or dicts, comes back as it is. The rows of several
        tasks are run task by task, or, without gradients, in one forward where a method has one
        that was measured to be faster.

        Args:
            *inputs: The network's, by position: tensors (batch, ...), and what else it takes. One
                alone may be a tuple, list or dict of them.
            task: A task's id or name; or, for each row, ids as an integer tensor (batch,), or a
                list of names. It may also be the last argument by position.
            **kwargs: The network's inputs by keyword.

        Raises:
            ValueError: A task was not added, there is not one id for each row, an input of a mixed
                batch has no rows, or tasks are mixed where the rows of a batch depend on each
                other.
            TypeError: The ids are not integers, or there is no task or no tensor.
        """
        if task is _LAST:
            if len(inputs) < 2:
                raise TypeError("task is missing; give learner(x, task=...), an id or a name")
            *rest, task = inputs
            inputs = tuple(rest)
        x = self._checked_inputs(called_with(self.net, inputs, kwargs))
        if isinstance(task, list | tuple) and task and all(isinstance(name, str) for name in task):
            task = torch.tensor([self._tasks.named(name) for name in task], device=x.device)
        if not isinstance(task, Tensor) or task.dim() == 0:
            return self._forward_one(x, self._tasks.checked(task))  # type: ignore[arg-type]
        ids = self._tasks.checked_rows(task, x)
        if len(ids) == 1:
            return self._forward_one(x, ids[0])
        self._check_mixing()
        self._prepare(x)
        known = torch.tensor(ids, device=x.device)
        places = torch.searchsorted(known, task.to(known))
        outputs = self._outputs_at_once(x, ids, places)
        if isinstance(outputs, Tensor):
            return self._tasks.own_outputs_of_rows(outputs, ids, places)
        rows = [(task == i).nonzero().flatten() for i in ids]
        parts = [self._forward_one(x[row], i) for i, row in zip(ids, rows, strict=True)]
        return take(cat(parts), torch.cat(rows).argsort())

    def net_for(self, task: TaskId) -> TaskNetwork:
        """Return a module whose call is this learner's for one task; it takes the network's inputs.

        Its parameters, its mode and its state are the learner's: nothing is copied, and what the
        learner learns later is what it runs with.

        Args:
            task: A task that was added.

        Raises:
            ValueError: The task was not added.
        """
        return TaskNetwork(self, self._tasks.checked(task))

    def extra_repr(self) -> str:
        names = [record.name for record in self.tasks]
        return f"tasks={names}; {self._outside}"

    @property
    def _outside(self) -> str:
        return f"net(x) outside a task: {self.alone}"

    def _ids_of(self, tasks: Sequence[TaskId] | None) -> list[int]:
        """Return the ids of tasks; of all that were added, where none is given."""
        given = range(len(self.tasks)) if tasks is None else tasks
        return [self._tasks.checked(task) for task in given]

    def _checked_inputs(self, x: Given) -> Any:
        """Return a batch as a tensor or :class:`Inputs`; see :func:`check_devices` for errors."""
        batch = inputs_of(x)
        check_devices(self._device, inputs=batch)
        return batch

    def _check_mixing(self) -> None:
        """Raise where rows of several tasks must not share a batch."""

    def check_network(self) -> None:
        """Raise RuntimeError where :attr:`net` is not the network the learner was built over."""

    def _prepare(self, x: Batch) -> None:
        """Look at the inputs of a forward, where a method has to."""

    def _forward_one(self, x: Batch, task: int) -> Any:
        return self._tasks.own_outputs(self._run_one(x, task), task)

    def _run_one(self, x: Batch, task: int) -> Any:
        """Return what the network of a task puts out."""
        self._prepare(x)
        outputs: Any = self._outputs_at_once(x, [task])
        if outputs is None:
            with self.activated(task) as net:
                outputs = run(net, x, self._input)
        return outputs

    def _outputs_at_once(
        self, x: Batch, ids: Sequence[int], task_of_row: Tensor | None = None
    ) -> Tensor | None:
        """Return the network's outputs for several tasks in one forward, where that is faster.

        Args:
            x: Inputs (batch, ...).
            ids: Of T tasks that were added.
            task_of_row: (batch,) int64, each row's place in ``ids``. Default: every row runs under
                every task.

        Returns:
            (batch, outputs), or (T * batch, outputs), those of the first task first. None where
            the tasks are to be run one by one, as with several inputs.
        """
        return None

    @property
    def _device(self) -> torch.device:
        return next(self.parameters()).device
