"""Scores of tasks by the gradient of a blend of all tasks' weights (SupSup)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from hypermask_fast.errors import ConfigError
from hypermask_fast.fields import setting
from hypermask_fast.inference.base import Evidence, Score, check_finite
from hypermask_fast.inference.one_shot import OBJECTIVES, gradients_of_rows, one_shot, passes_stayed
from hypermask_fast.methods.base import Learner


@dataclass(frozen=True)
class _OfBlend(Score):
    takes_several: ClassVar[bool] = False

    objective: str = setting(
        "entropy",
        "of the blend's outputs",
        "g needs outputs beyond the classes",
        choices=OBJECTIVES,
    )
    rows: int | None = setting(
        None, "how many of the first images that run together are looked at", "Published: 1", low=1
    )
    outputs: int | None = setting(
        None, "outputs that stand for a class, for g", "None: those of the largest task", low=1
    )

    @property
    def shares_task(self) -> bool:
        return True

    def evidence(
        self, learner: Learner, x: Tensor, tasks: Sequence[int], batch_size: int
    ) -> Evidence:
        check_weights_differ(learner, tasks)
        found = [
            self._of_batch(learner, rows, tasks)[:, None].expand(-1, len(rows))
            for rows in x.split(batch_size)
            if len(rows)
        ]
        scores = torch.cat(found, 1) if found else x.new_zeros(len(tasks), 0)
        return Evidence(scores.double(), None)

    def _search(self, tasks: Sequence[int]) -> dict[str, Any]:
        return {
            "objective": self.objective,
            "rows": self.rows,
            "classes": self.outputs,
            "tasks": tasks,
        }

    def _of_batch(self, learner: Learner, x: Tensor, tasks: Sequence[int]) -> Tensor:
        """Return the scores (tasks,) of images that have one task."""
        raise NotImplementedError


@dataclass(frozen=True)
class OneShot(_OfBlend):
    """The negative gradient of an objective by a task's share in a blend of all tasks' weights.

    As published for SupSup, in one forward and one backward for the images that run together, which
    are taken to be of one task.

    Raises:
        ConfigError: An option is unknown, of another type or out of range.
    """

    per_image: bool = setting(
        False,
        "each image has a task of its own",
        "In one pass for each task over all of them, with derivatives taken forward; where nothing "
        "depends on the batch, the gradients are those of batches of one",
    )

    @property
    def shares_task(self) -> bool:
        return not self.per_image

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.per_image and self.rows is not None:
            raise ConfigError(
                f"rows={self.rows} is of images that share a task; leave it out with per_image"
            )

    def evidence(
        self, learner: Learner, x: Tensor, tasks: Sequence[int], batch_size: int
    ) -> Evidence:
        if not self.per_image:
            return super().evidence(learner, x, tasks, batch_size)
        check_weights_differ(learner, tasks)
        gradients = gradients_of_rows(
            *(learner, x, tasks, batch_size), objective=self.objective, classes=self.outputs
        ).double()
        check_finite(gradients, tasks, "gradient")
        return Evidence(-gradients, None)

    def _of_batch(self, learner: Learner, x: Tensor, tasks: Sequence[int]) -> Tensor:
        return -one_shot(learner, x, **self._search(tasks)).grad[0][list(tasks)]


@dataclass(frozen=True)
class Binary(_OfBlend):
    """In how many passes of the binary search a task is left, for images that have one task.

    As published for SupSup: a pass keeps the tasks of the lower gradients. Of those that it cannot
    tell apart the first is chosen.

    Raises:
        ConfigError: An option is unknown, of another type or out of range.
    """

    base: int = setting(2, "the inverse of the share of tasks that a pass keeps", low=2)

    def _of_batch(self, learner: Learner, x: Tensor, tasks: Sequence[int]) -> Tensor:
        return passes_stayed(learner, x, base=self.base, **self._search(tasks))[list(tasks)]


def check_weights_differ(learner: Learner, tasks: Sequence[int]) -> None:
    """Raise ConfigError where all tasks have the same weights, whose shares have one gradient."""
    first, *others = (learner.task_weights(task) for task in tasks[:2])
    if others and all(torch.equal(w, others[0][name]) for name, w in first.items()):
        raise ConfigError(
            f"tasks {tasks[0]} and {tasks[1]} have the same weights, so that no gradient of "
            "a blend tells them apart; use another score, such as 'ridge'"
        )
