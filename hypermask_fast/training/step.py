"""One training step."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hypermask_fast.methods.base import Learner, Losses


class TrainingStep:
    """Forward, backward and update of a learner on one batch.

    With a :class:`~hypermask_fast.FactoredAdam` of ``step_in_backward=True`` the head is read and
    written once in the backward pass; with any other optimizer the step is the ordinary one.

    Args:
        learner: The learner, between ``begin_task`` and ``end_task``.
        optimizer: An optimizer over its parameters, new or reset for this task.
    """

    def __init__(self, learner: Learner, optimizer: torch.optim.Optimizer) -> None:
        self.learner = learner
        self.optimizer = optimizer

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
            before_update: Called after the forward, before anything is updated.
        """
        self.optimizer.zero_grad(set_to_none=True)
        losses = self.learner.losses(x, y, task, optimizer=self.optimizer)
        if before_update is not None:
            before_update()
        losses.total.backward()
        self.optimizer.step()
        return Losses(*(value.detach() for value in losses))
