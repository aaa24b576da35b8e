"""One training step."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hypermask_fast.autograd import HeadUpdate
from hypermask_fast.methods.base import Learner, Losses
from hypermask_fast.optim import FactoredAdam


class TrainingStep:
    """Forward, backward and update of a learner on one batch.

    With :class:`FactoredAdam` and a hypernetwork whose head allows it, the backward pass updates
    the head in one pass over it; else the step is the ordinary one.

    Args:
        learner: The learner, between ``begin_task`` and ``end_task``.
        optimizer: An optimizer over its parameters, new or reset for this task.
    """

    def __init__(self, learner: Learner, optimizer: torch.optim.Optimizer) -> None:
        self.learner = learner
        self.optimizer = optimizer
        self._hypernetwork = learner.updatable_hypernetwork()
        self._update: HeadUpdate | None = None
        if isinstance(optimizer, FactoredAdam) and self._hypernetwork is not None:
            self._update = HeadUpdate(optimizer)

    def __call__(
        self,
        x: Tensor,
        y: Tensor,
        task: int,
        before_update: Callable[[], None] | None = None,
    ) -> Losses:
        """Run a step and return its losses, detached.

        A gradient that is not finite leaves every parameter as it was where the backward pass
        updates the head.

        Args:
            x, y: A batch, as in :meth:`Learner.losses`.
            task: The current task.
            before_update: Called before anything is updated.
        """
        self.optimizer.zero_grad(set_to_none=True)
        if self._update is not None:
            return self._fused(self._update, x, y, task, before_update)
        losses = self.learner.losses(x, y, task)
        losses.total.backward()
        if before_update is not None:
            before_update()
        self.optimizer.step()
        return Losses(*(value.detach() for value in losses))

    def _fused(
        self,
        update: HeadUpdate,
        x: Tensor,
        y: Tensor,
        task: int,
        before_update: Callable[[], None] | None,
    ) -> Losses:
        assert self._hypernetwork is not None
        with self._hypernetwork.updating(update):
            losses = self.learner.losses(x, y, task)
        if before_update is not None:
            before_update()
        losses.total.backward()
        losses = Losses(*(value.detach() for value in losses))
        if update.skipped:
            return losses
        self.optimizer.step()
        # The backward pass found the regulariser; the forward pass had 0 in its place.
        return losses._replace(output_reg=update.output_reg, total=losses.total + update.penalty)
