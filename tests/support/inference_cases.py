"""Learners whose outputs or features are given, and inference of tasks written plainly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from hypermask_fast.methods.base import Learner
from hypermask_fast.methods.hypermask.learner import HyperMask
from tests.support.hypermask_cases import make

Array = npt.NDArray[np.float64]


class Recorded(Learner):
    """A learner that gives rows of recorded logits and features for inputs that are their numbers.

    Args:
        logits: (tasks, rows, outputs).
        features: (tasks, rows, features).
        classes: Global ids of each task's classes.
        learned: Tasks that were learned. Default: all.
    """

    def __init__(
        self,
        logits: Tensor,
        features: Tensor | None = None,
        classes: Sequence[Sequence[int] | None] | None = None,
        learned: Sequence[int] | None = None,
    ) -> None:
        super().__init__(nn.Linear(1, 1), capacity=len(logits))
        self.logits, self.given = logits, features
        for task in range(len(logits)):
            self.add_task(classes=None if classes is None else classes[task])
        for task in range(len(logits)) if learned is None else learned:
            self.begin_task(task)
            self.end_task()

    def activated(
        self, task: int, weights: Mapping[str, Tensor] | None = None
    ) -> AbstractContextManager[Any]:
        return nullcontext(self.logits[task].__getitem__)

    def features(self, x: Tensor, task: int, batch_size: int | None = None) -> Tensor:
        assert self.given is not None
        return self.given[task][x]


CLASSES = ((7, 3), (5, 1, 8), (0, 2, 4))


def learned(classes: Sequence[Sequence[int]] = CLASSES, **options: Any) -> HyperMask:
    """A float64 HyperMask of three tasks, the first with two classes and all with global ids."""
    learner = make(tasks=0, **options).double()
    for ids in classes:
        learner.add_task(classes=ids)
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter.add_(0.4 * torch.randn_like(parameter))
    learner.eval()
    learner(torch.randn(4, 5).double(), 0)
    for task in range(3):
        learner.begin_task(task)
        learner.end_task()
    return learner


def softmax(logits: Array) -> Array:
    powers = np.exp(logits - logits.max())
    p: Array = powers / powers.sum()
    return p


def plain_entropy(logits: Array) -> float:
    """Entropy of one row, in a loop."""
    return -sum(p * np.log(p) for p in softmax(logits) if p > 0)


def plain_margin(logits: Array) -> float:
    second, first = np.sort(softmax(logits))[-2:]
    return float(np.log(first / second))


def plain_energy(logits: Array) -> float:
    return float(np.log(np.exp(logits).sum()))


PLAIN_SCORES = {
    "entropy": lambda logits: -plain_entropy(logits),
    "margin": plain_margin,
    "energy": plain_energy,
    "max_logit": lambda logits: float(max(logits)),
}


def plain_models(features: Array, shrinkage: int = 2) -> tuple[Array, Array]:
    """Prototype and inverse covariance of one class, entry by entry."""
    n, d = features.shape
    mean = features.sum(0) / n
    covariance = np.zeros((d, d))
    for row in features:
        covariance += np.outer(row - mean, row - mean) / (n - 1)
    for _ in range(shrinkage):
        off = [
            covariance[a, b] for a in range(d) for b in range(d) if a != b and covariance[a, b] != 0
        ]
        variance, shared = np.trace(covariance) / d, sum(off) / max(1, len(off))
        for a in range(d):
            for b in range(d):
                covariance[a, b] += variance if a == b else shared
    deviation = np.sqrt(np.diag(covariance)).copy()
    for a in range(d):
        for b in range(d):
            covariance[a, b] /= deviation[a] * deviation[b]
    return mean, np.linalg.pinv(covariance + 1e-8)


def plain_distance(row: Array, prototype: Array, inverse: Array) -> float:
    """Squared Mahalanobis distance of one row to a class, both of unit length or 0."""

    def unit(values: Array) -> Array:
        return values / max(float(np.linalg.norm(values)), 1e-12)

    difference = unit(row) - unit(prototype)
    return float(difference @ inverse @ difference)
