"""Scores of tasks by what the task's own network puts out: entropy, margin and energy."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hypermask_fast.errors import ConfigError, shown
from hypermask_fast.fields import setting
from hypermask_fast.inference.base import Evidence, Score, check_finite, minus_log
from hypermask_fast.methods.base import Learner


def entropy(logits: Tensor) -> Tensor:
    """Return the entropy of softmax in nats, (...), where 0 log 0 is 0.

    Args:
        logits: (..., outputs); -inf is an output that does not exist.
    """
    logs = logits.log_softmax(-1)
    p = logs.exp()
    return -torch.where(p > 0, p * logs, 0).sum(-1)


def margin(logits: Tensor) -> Tensor:
    """Return the log of how much likelier the first class is than the second, (...).

    The difference of the two largest logits: other than that of their probabilities, it tells
    certain outputs apart.

    Args:
        logits: (..., outputs), two of which are finite.
    """
    first, second = logits.topk(2, -1).values.unbind(-1)
    return first - second


def energy(logits: Tensor) -> Tensor:
    """Return the negative free energy, the logsumexp of the logits, (...).

    Args:
        logits: (..., outputs); -inf is an output that does not exist.
    """
    return logits.logsumexp(-1)


def check_classes(learner: Learner, tasks: Sequence[int], outputs: int) -> None:
    """Raise ConfigError where a task has one class alone.

    Args:
        learner: The learner.
        tasks: Ids of tasks.
        outputs: Of the network, for tasks that do not say their classes.
    """
    for task in tasks:
        classes = learner.tasks[task].classes
        if (outputs if classes is None else len(classes)) < 2:
            raise ConfigError(
                f"task {task} has one class, of which its network is always certain; use "
                "'energy' or 'fecam', or give the task more classes"
            )


@dataclass(frozen=True)
class _OutputScore(Score):
    """A score of the logits of each task's outputs, in float64.

    Certain outputs differ by less than float32 can tell: they would be ties, which the first task
    wins.
    """

    needs_two_classes: ClassVar[bool] = True

    def evidence(
        self, learner: Learner, x: Tensor, tasks: Sequence[int], batch_size: int
    ) -> Evidence:
        logits = learner.competing_outputs(x, tasks, batch_size)
        if not isinstance(logits, Tensor) or logits.dim() != 3:
            raise ConfigError(
                f"the network puts out {shown(logits)} for several tasks, and tasks are told apart "
                "by logits (batch, outputs); use a network that puts out those"
            )
        logits = logits.double()
        if self.needs_two_classes:
            check_classes(learner, tasks, logits.shape[-1])
        check_finite(logits.amax(-1), tasks, "largest output")
        scores = self.of_logits(logits)
        check_finite(scores, tasks, "score")
        return Evidence(scores, logits.argmax(-1))

    @abstractmethod
    def of_logits(self, logits: Tensor) -> Tensor:
        """Return the scores (tasks, batch) of logits (tasks, batch, outputs)."""


@dataclass(frozen=True)
class Entropy(_OutputScore):
    """The negative entropy of softmax in nats, as published for HNET and HyperMask.

    Raises:
        ConfigError: The temperature is not above 0.
    """

    temperature: float = setting(1.0, "what the logits are divided by", above=0.0)

    def of_logits(self, logits: Tensor) -> Tensor:
        return -entropy(logits / self.temperature)

    def spread(self, scores: Tensor) -> Tensor:
        """Return minus the log of the entropies, for those of trained networks crowd at 0."""
        return minus_log(scores)


@dataclass(frozen=True)
class Margin(_OutputScore):
    """The difference of the two largest logits."""

    def of_logits(self, logits: Tensor) -> Tensor:
        return margin(logits)


@dataclass(frozen=True)
class Energy(_OutputScore):
    """The logsumexp of the logits.

    Raises:
        ConfigError: The temperature is not above 0.
    """

    temperature: float = setting(1.0, "T of T * logsumexp(logits / T)", above=0.0)
    needs_two_classes: ClassVar[bool] = False

    def of_logits(self, logits: Tensor) -> Tensor:
        return self.temperature * energy(logits / self.temperature)


@dataclass(frozen=True)
class MaxLogit(_OutputScore):
    """The largest logit: where all tasks' outputs are one softmax, the class it chooses."""

    needs_two_classes: ClassVar[bool] = False

    def of_logits(self, logits: Tensor) -> Tensor:
        return logits.amax(-1)
