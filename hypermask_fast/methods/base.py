"""What every method shares: tasks and their life cycle, steps, and what others may ask of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from hypermask_fast.backends.compiled import Compiler
from hypermask_fast.conversion.entries import Entry, manifest
from hypermask_fast.errors import shown
from hypermask_fast.fields import check_value
from hypermask_fast.kernels.constants import constant
from hypermask_fast.methods.batches import (
    check_devices,
    check_labels,
    check_optimizers,
    check_rows,
)
from hypermask_fast.methods.evaluating import modes_of
from hypermask_fast.methods.forwards import TaskForwards
from hypermask_fast.methods.inputs import Given
from hypermask_fast.methods.outputs import Criterion, check_criterion, loss_of
from hypermask_fast.methods.protocol import Losses, ParameterGroup
from hypermask_fast.methods.sharing import Share
from hypermask_fast.methods.tasks import TaskId
from hypermask_fast.optim.factored_adam import FactoredAdam
from hypermask_fast.optim.rows import mark_table


def ordinary_step(
    losses_of: Callable[..., Losses],
    x: Given,
    y: Any,
    task: TaskId,
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
    total = losses.total
    on_cpu = total.device.type == "cpu"
    # Where none is given, a launch makes it.
    total.backward(None if on_cpu else constant(1.0, total.device, total.dtype))
    for optimizer in optimizers.values():
        optimizer.step()
    return losses


class Learner(TaskForwards):
    """A network that learns tasks one after the other.

    The life of a task: :meth:`add_task` (it can be evaluated from then on), :meth:`begin_task`,
    :meth:`losses` or :meth:`step` for each batch, :meth:`end_task`. A method overrides what it does
    differently; without that it is a plain network that all tasks share and nothing protects.

    Args:
        net: The target network.
        capacity: Tasks that there are rows for at first.

    Attributes:
        takes_input_shape: Whether the constructor takes ``input_shape=``, that of one input.
        alone: What the network does that is called itself, outside of a task.
        criterion: The loss of a batch, a function of outputs and targets that returns a 0-d tensor.
            None, the default: the mean cross-entropy of labels. Where a task has fewer classes than
            the network outputs, it gets the task's outputs alone. A module becomes a part of the
            learner: it moves with it, is in its ``state_dict``, and its parameters train.
        steps_taken: Calls of :meth:`losses` in the current task, where a method counts them. Set it
            where a CUDA graph repeated what a call does on the device.
        share: Within a step that several processes take together, this process's part of it.
    """

    takes_input_shape: ClassVar[bool] = False

    steps_taken: int = 0
    share: Share | None = None

    def __init__(self, net: nn.Module, capacity: int) -> None:
        super().__init__(net, capacity)
        self.criterion: Criterion | None = None

    @property
    def class_dim(self) -> int | None:
        """The dimension of outputs that classes are along; None, the default: of (batch, outputs).

        Outputs of more dimensions have their classes, as the network was built, along 1 (of
        segmentation) or -1 (of tokens). It matters to tasks that were added with classes alone.
        """
        return self._tasks.class_dim

    @class_dim.setter
    def class_dim(self, dim: int | None) -> None:
        self._tasks.class_dim = check_value("class_dim", int, dim, None)

    def parameter_groups(self, phase: str = "train") -> Sequence[ParameterGroup]:
        """Return what the optimizers of a phase train. Default: all that has gradients, alike."""
        return [ParameterGroup([p for p in self.parameters() if p.requires_grad])]

    def target_weights(self) -> Iterable[Tensor]:
        """Return the parameters that are the target network's own, or train in place of them.

        Default: those of :attr:`net`.
        """
        return self.net.parameters()

    def follows_exchange(self) -> Iterable[Tensor]:
        """Return the parameters whose gradients follow from what the learner exchanges itself.

        Where several processes take a step together, each with its rows, the gradients that an
        optimizer reads become their means over the rows first, but for those of these parameters:
        they must be the same in all processes already, as those of a hypernetwork are once the
        gradient of what it emits is (:meth:`_exchanged`). Default: none.
        """
        return ()

    def _exchanged(self, value: Tensor) -> Tensor:
        """Return what is the same in all processes; its gradient becomes the whole batch's."""
        return value if self.share is None else self.share.exchanged(value)

    def begin_phase(self, name: str) -> None:
        super().begin_phase(name)
        for group in self.parameter_groups(name):
            for table in group.params if group.row_sparse else ():
                mark_table(table)

    def losses(
        self,
        x: Given,
        y: Any,
        task: TaskId,
        *,
        optimizer: Optimizer | None = None,
        criterion: Criterion | None = None,
    ) -> Losses:
        """Return the losses of a batch of the current task; call ``.total.backward()``.

        Default: the mean cross-entropy of the task's network.

        Args:
            x: Inputs (batch, ...): a tensor, a tuple of several, or a dict of those by keyword.
            y: Local labels int64 (batch,); with a criterion what that takes.
            task: The task given to :meth:`begin_task`.
            optimizer: What updates parameters in the backward pass of these losses, if one does.
            criterion: In place of :attr:`criterion`. Default: that one.

        Raises:
            RuntimeError: The task was not begun.
            ValueError: Shapes, devices or labels do not fit, or the criterion's value is not 0-d.
            TypeError: An argument has another type.
        """
        x, task = self._checked_batch(x, y, task, criterion)
        with modes_of(self):
            outputs = self._run_one(x, task)
        loss, outputs = self._loss_of(outputs, y, task, criterion)
        return Losses(loss, loss, outputs, {})

    def _loss_of(
        self, outputs: Any, y: Any, task: int, criterion: Criterion | None
    ) -> tuple[Tensor, Any]:
        """Return the loss of a batch, 0-d, and the outputs that it is of.

        Args:
            outputs: The network's.
            y: Labels, or what the criterion takes.
            task: The current task.
            criterion: In place of :attr:`criterion`.
        """
        chosen = self.criterion if criterion is None else criterion
        if chosen is not None:
            outputs = self._own_outputs(outputs, task, alone=True)
            return loss_of(chosen, outputs, y), outputs
        if not isinstance(outputs, Tensor):
            raise TypeError(
                f"the network puts out {shown(outputs)}, which has no cross-entropy; give a "
                "criterion that takes it and the targets"
            )
        outputs = self._own_outputs(outputs, task, alone=False)
        self._tasks.check_labels(y, task, outputs.shape[-1])
        return F.cross_entropy(outputs, y), outputs

    def _own_outputs(self, outputs: Any, task: int, *, alone: bool) -> Any:
        """Return outputs with -inf where a task has no class, or the task's alone."""
        if alone:
            return self._tasks.outputs_alone(outputs, task)
        return self._tasks.own_outputs(outputs, task)

    def regularization(self, task: TaskId) -> Tensor:
        """Return what :meth:`losses` adds to a batch's loss, 0-d, for a loss of one's own.

        Gradients flow to what it is of. Each call counts as a step, as one of :meth:`losses` does::

            loss = my_loss(learner(x, task=t), y) + learner.regularization(t)

        In training mode the forward before it is that of :meth:`losses` in this step.

        Default: 0, of methods whose tasks share nothing that changes.

        Args:
            task: The task given to :meth:`begin_task`.

        Raises:
            RuntimeError: The task was not begun, or the method has no such term: call :meth:`step`.
        """
        self._checked_current(task)
        return next(self.parameters()).new_zeros(())

    def step(
        self,
        x: Given,
        y: Any,
        task: TaskId,
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

    def memory_parts(self) -> Mapping[str, Sequence[Tensor]]:
        """Return the tensors of the learner by the name that a plan of the memory shows them under.

        Those that are not named count as parts of the target network.
        """
        return {"weights at the start of the task": list((self._start or {}).values())}

    def learned_state(self, tasks: Sequence[int]) -> dict[str, Any]:
        """Return what :meth:`task_state` says of tasks that were learned in this order, as JSON.

        For a plan, which learns none.
        """
        return {"learned": list(tasks)}

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
        loss = (self.criterion, self.class_dim)
        return self._current, self.phase, self.training, self.capacity, *loss

    def manifest(self) -> list[dict[str, Any]]:
        """Return name, shape, offset, masked and reason of every target parameter, for JSON.

        Default: none has a mask.
        """
        return manifest(
            [Entry(n, tuple(p.shape), -1, False, "shared") for n, p in self.net.named_parameters()]
        )

    def _checked_current(self, task: TaskId) -> int:
        task = self._tasks.checked(task)
        if task != self._current:
            state = "no task" if self._current is None else f"task {self._current}"
            raise RuntimeError(
                f"losses of task {task} were asked for while {state} is being learned; call "
                f"begin_task({task}) first"
            )
        return task

    def _checked_batch(
        self, x: Given, y: Any, task: TaskId, criterion: Criterion | None = None
    ) -> tuple[Any, int]:
        """Return a batch to learn from and the id of the current task; refuse what does not fit."""
        task = self._checked_current(task)
        check_criterion(self.criterion if criterion is None else criterion)
        batch = self._checked_inputs(x)
        is_own = criterion is not None or self.criterion is not None
        if not is_own or isinstance(y, Tensor):
            check_devices(self._device, labels=y)
        if not is_own:
            check_labels(batch, y)
        check_rows(batch)
        return batch, task


def check_learner(learner: Learner) -> Learner:
    """Return a learner; raise TypeError where it is none."""
    if not isinstance(learner, Learner):
        raise TypeError(
            f"learner is {shown(learner)}; give a learner of this package, such as HyperMask(net)"
        )
    return learner
