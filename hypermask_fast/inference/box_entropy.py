"""The score of tasks by the entropy of what HyperInterval's boxes put out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hypermask_fast.errors import ConfigError
from hypermask_fast.fields import check_value, setting
from hypermask_fast.inference.base import Evidence, Score, check_finite, minus_log
from hypermask_fast.inference.outputs import check_classes
from hypermask_fast.methods.base import Learner

_LEAST_WIDTH = 1e-3


def weighted_entropy(mid: Tensor, width: Tensor) -> Tensor:
    """Return the entropy of softmax(mid) whose terms are divided by 0.001 + width, (...).

    Args:
        mid: Logits (..., outputs).
        width: Of their bounds, of the same shape, not negative.
    """
    logs = mid.log_softmax(-1)
    p = logs.exp()
    terms = torch.where(p > 0, p * logs, 0)
    return -(terms / (_LEAST_WIDTH + width)).sum(-1)


@dataclass(frozen=True)
class BoxEntropy(Score):
    """The negative entropy of the middle logits of each task's own box, of HyperInterval.

    Published for tasks that do not share a network, with an extent of 1 whatever the trained one;
    of nested tasks it is this package's.

    Attributes:
        extent: The sum of a box's radii. Default None: the trained one. Published: 1.0.
        weighted: Divide the terms of the entropy by 0.001 plus the width of the logit's bounds, a
            published variant. Default False.

    Raises:
        ConfigError: The extent is below 0.
    """

    extent: float | None = setting(
        None, "sum of the radii of a task's box, none for the trained one (published: 1.0)", low=0.0
    )
    weighted: bool = setting(
        False, "divide the terms of the entropy by 0.001 and the width of the logit's bounds"
    )

    def __post_init__(self) -> None:
        if self.extent is not None:
            check_value("extent", float, self.extent, low=0.0)

    def evidence(
        self, learner: Learner, x: Tensor, tasks: Sequence[int], batch_size: int
    ) -> Evidence:
        bounds_of = getattr(learner, "bounds", None)
        if bounds_of is None:
            raise ConfigError(
                f"score='box_entropy' needs boxes and {type(learner).__name__} has none; use "
                "'entropy', or train with method='hyperinterval'"
            )
        scores, outputs = [], []
        for task in tasks:
            low, mid, up = bounds_of(x, task, extent=self.extent, batch_size=batch_size)
            classes = learner.tasks[task].classes
            count = mid.shape[-1] if classes is None else len(classes)
            check_classes(learner, [task], count)
            own, width = mid[:, :count].double(), (up - low)[:, :count].double().abs()
            width = width if self.weighted else torch.ones_like(width) - _LEAST_WIDTH
            scores.append(-weighted_entropy(own, width))
            outputs.append(own.argmax(-1))
        found = torch.stack(scores)
        check_finite(found, tasks, "score")
        return Evidence(found, torch.stack(outputs))

    def spread(self, scores: Tensor) -> Tensor:
        """Return minus the log of the entropies, for those of trained networks crowd at 0."""
        return minus_log(scores)
