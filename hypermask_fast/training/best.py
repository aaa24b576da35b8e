"""The best model of a task so far."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from hypermask_fast.methods.base import Learner
from hypermask_fast.methods.extra_state import moving_of
from hypermask_fast.training.schedules import finite_or_none, or_minus_infinity


class BestModel:
    """The weights that had the highest score since :meth:`clear`.

    Args:
        learner: Whose they are.

    Attributes:
        weights: By name; empty where none were kept.
    """

    def __init__(self, learner: Learner) -> None:
        self._learner = learner
        self.weights: dict[str, Tensor] = {}
        self._score = -math.inf

    def clear(self) -> None:
        """Forget them."""
        self.weights, self._score = {}, -math.inf

    def offer(self, score: float) -> None:
        """Keep the model as it is now, where its score is higher than that of the one kept."""
        if score > self._score:
            self._score = score
            self.keep()

    def keep(self) -> None:
        """Keep the model as it is now, in the memory of the one that was kept before."""
        before, self.weights = self.weights, {}
        for name, value in moving_of(self._learner).items():
            kept = before.get(name, value)
            is_own = kept is not value and kept.shape == value.shape
            self.weights[name] = kept.copy_(value) if is_own else value.clone()

    def restore(self) -> None:
        """Give the learner the weights that were kept, if any, and forget them."""
        if self.weights:
            self._learner.restore(self.weights)
        self.clear()

    @property
    def saved_score(self) -> float | None:
        """The score as JSON has it: None where nothing was offered."""
        return finite_or_none(self._score)

    def load(
        self, weights: Mapping[str, Tensor], score: float | None, device: torch.device
    ) -> None:
        """Take what was kept before a checkpoint."""
        self.weights = {name: value.to(device) for name, value in weights.items()}
        self._score = or_minus_infinity(score)
