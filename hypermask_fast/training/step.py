"""One training step."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor
from torch.optim.optimizer import Optimizer

from hypermask_fast.methods.base import Learner
from hypermask_fast.methods.protocol import Losses


class TrainingStep:
    """A learner's step with its optimizers, on one batch.

    With a :class:`~hypermask_fast.FactoredAdam` of ``step_in_backward=True`` the head is read and
    written once in the backward pass; with any other optimizer the step is the ordinary one.

    Args:
        learner: The learner, between ``begin_task`` and ``end_task``.
        optimizers: Over its parameters, new or reset for this task and phase, by name; one alone is
            the main one.

    Attributes:
        number: Of the task's step that comes, where somebody says so.
    """

    number = 0

    def __init__(self, learner: Learner, optimizers: Optimizer | Mapping[str, Optimizer]) -> None:
        self.learner = learner
        self.optimizers: Mapping[str, Optimizer] = (
            {"main": optimizers} if isinstance(optimizers, Optimizer) else optimizers
        )

    def __call__(
        self,
        x: Tensor,
        y: Tensor,
        task: int,
        before_update: Callable[[], None] | None = None,
    ) -> Losses:
        """Run a step and return its losses, detached.

        Args:
            x, y: A batch, as in :meth:`Learner.losses`.
            task: The current task.
            before_update: As in :meth:`Learner.step`.
        """
        return self.learner.step(x, y, task, self.optimizers, before_update).detached()
