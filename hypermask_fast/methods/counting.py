"""A learner that counts the steps of its current task."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from hypermask_fast.methods.base import Learner
from hypermask_fast.methods.state_checks import check_count
from hypermask_fast.methods.steps import Steps
from hypermask_fast.methods.tasks import TaskId


class CountsSteps(Learner):
    """A learner with the number of its step on the host and on the device; a subclass makes it."""

    _steps: Steps

    def begin_task(self, task: TaskId, *, steps: int = 0, data: object = None) -> None:
        task = self._checked_beginning(task, steps)
        self._steps.start(0)
        super().begin_task(task, steps=steps, data=data)

    def _leave(self) -> None:
        super()._leave()
        self._steps.start(0)

    @property
    def steps_taken(self) -> int:
        return self._steps.taken

    @steps_taken.setter
    def steps_taken(self, count: int) -> None:
        self._steps.taken = count

    def _earlier(self, task: int) -> list[int]:
        """Return the tasks that were learned, but for this one."""
        return [other for other in self._learned if other != task]

    def task_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, state = super().task_state()
        return tensors, {**state, "step": self._steps.taken, "ramp_steps": self._steps.ramp}

    def _check_state(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        super()._check_state(tensors, state)
        check_count(state, "step")
        check_count(state, "ramp_steps")

    def _return_to(self, state: dict[str, Any]) -> None:
        super()._return_to(state)
        self._steps.start(state["ramp_steps"], state["step"])

    def load_task_state(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        super().load_task_state(tensors, state)
        self._steps.start(state["ramp_steps"], state["step"])
