"""A learner's network under one task, as a module of its own."""

from __future__ import annotations

from typing import Any

from torch import nn

from hypermask_fast.methods.life import TaskLife


class TaskNetwork(nn.Module):
    """Calls a learner for one task; made by ``learner.net_for(task)``.

    Args:
        learner: The learner.
        task: The id of a task that was added.

    Attributes:
        learner: The learner.
        task: The id.
    """

    def __init__(self, learner: TaskLife, task: int) -> None:
        super().__init__()
        self.learner, self.task = learner, task
        self.training = learner.training

    def forward(self, *inputs: Any, **kwargs: Any) -> Any:
        """Return what ``learner(*inputs, task=task, **kwargs)`` does."""
        return self.learner(*inputs, task=self.task, **kwargs)

    def extra_repr(self) -> str:
        return f"task={self.learner.tasks[self.task].name!r}"
