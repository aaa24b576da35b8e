"""A learner's network under one task, as a module of its own."""

from __future__ import annotations

from typing import Any

from torch import nn

from hypermask_fast.methods.life import TaskLife


class TaskNetwork(nn.Module):
    """Calls a learner for one task; made by ``learner.net_for(task)``.

    It goes with the task's name, through renaming: a task that was removed is an error, and not the
    one that has its place now.

    Args:
        learner: The learner.
        task: The id of a task that was added.

    Attributes:
        learner: The learner.
    """

    def __init__(self, learner: TaskLife, task: int) -> None:
        super().__init__()
        self.learner = learner
        self.training = learner.training
        self._name, self._seen = learner.tasks[task].name, len(learner.renamed)

    @property
    def name(self) -> str:
        """The task's name."""
        for old, new in self.learner.renamed[self._seen :]:
            self._name = new if old == self._name else self._name
        self._seen = len(self.learner.renamed)
        return self._name

    @property
    def task(self) -> int:
        """The task's id.

        Raises:
            ValueError: It was removed.
        """
        return self.learner.task_id(self.name)

    def forward(self, *inputs: Any, **kwargs: Any) -> Any:
        """Return what ``learner(*inputs, task=task, **kwargs)`` does."""
        return self.learner(*inputs, task=self.task, **kwargs)

    def extra_repr(self) -> str:
        return f"task={self.name!r}"
