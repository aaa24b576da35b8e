"""Schedules of the learning rate, and their state as a checkpoint holds it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.optim.optimizer import Optimizer

_STATE = ("best", "num_bad_epochs", "cooldown_counter", "last_epoch")


def finite_or_none(value: float) -> float | None:
    """Return a number as JSON can hold it."""
    return value if math.isfinite(value) else None


def or_minus_infinity(value: float | None) -> float:
    """Return what :func:`finite_or_none` made of the best value of none."""
    return -math.inf if value is None else value


class Plateau:
    """HyperMask's schedule: sqrt(0.1) of the rate after 5 epochs of no better accuracy.

    Args:
        optimizers: Whose rates it lowers.
    """

    def __init__(self, optimizers: Iterable[Optimizer]) -> None:
        self._each: Sequence[ReduceLROnPlateau] = [
            ReduceLROnPlateau(optimizer, mode="max", factor=0.1**0.5, patience=5, min_lr=5e-7)
            for optimizer in optimizers
        ]

    def after_epoch(self, accuracy: float) -> None:
        """Take note of a validation accuracy."""
        for each in self._each:
            each.step(accuracy)

    def state(self) -> dict[str, Any]:
        """Return the counters for JSON; those of all optimizers are the same."""
        state = {key: getattr(self._each[0], key) for key in _STATE}
        return {**state, "best": finite_or_none(state["best"])}

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state` returned."""
        for each in self._each:
            vars(each).update({**state, "best": or_minus_infinity(state["best"])})
