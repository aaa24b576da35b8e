"""Schedules of the learning rate, and their state as a checkpoint holds it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.optim.optimizer import Optimizer

MILESTONES = ((0.4, 0.1), (0.6, 0.01), (0.8, 1e-3), (0.9, 5e-4))
"""Fractions of the steps, and factors of the rate from there on: HNET's ResNet, after epochs 80,
120, 160 and 180 of 200. That run also had a plateau schedule, whose rates these replaced."""
_PLATEAU_STATE = ("best", "num_bad_epochs", "cooldown_counter", "last_epoch")


def finite_or_none(value: float) -> float | None:
    """Return a number as JSON can hold it."""
    return value if math.isfinite(value) else None


def or_minus_infinity(value: float | None) -> float:
    """Return what :func:`finite_or_none` made of the best value of none."""
    return -math.inf if value is None else value


def _half_cosine(done: float) -> float:
    return 0.5 + 0.5 * math.cos(math.pi * done)


def _after_milestones(done: float) -> float:
    return next((factor for begins, factor in reversed(MILESTONES) if done >= begins), 1.0)


class Schedule:
    """The learning rates of a phase's optimizers, step by step.

    Args:
        kind: "constant"; "cosine", from the rate to 0 over the phase; "milestones", by
            :data:`MILESTONES`; or "plateau" (HyperMask on CIFAR-100), sqrt(0.1) of the rate after
            5 epochs of no better validation accuracy.
        optimizers: New, with the rates to begin with.
        steps: Of the phase.
        warmup_steps: Steps over which the rate rises linearly from 0. Default 0.
    """

    def __init__(
        self, kind: str, optimizers: Iterable[Optimizer], *, steps: int, warmup_steps: int = 0
    ) -> None:
        self.watches = kind == "plateau"
        self._factors = {"cosine": _half_cosine, "milestones": _after_milestones}.get(kind)
        self._steps, self._warmup_steps = steps, warmup_steps
        optimizers = list(optimizers)
        # By optimizer: what it loads replaces its groups.
        self._rates = [
            (each, [float(group["lr"]) for group in each.param_groups]) for each in optimizers
        ]
        self._plateaus = [
            ReduceLROnPlateau(each, mode="max", factor=0.1**0.5, patience=5, min_lr=5e-7)
            for each in (optimizers if self.watches else ())
        ]

    def before_step(self, step: int) -> None:
        """Set the rates of a step of the phase, counted from 0."""
        if self._factors is None and step >= self._warmup_steps:
            if self._warmup_steps and step == self._warmup_steps:
                self._set(1.0)
            return
        factor = min(1.0, (step + 1) / self._warmup_steps) if self._warmup_steps else 1.0
        if self._factors is not None:
            factor *= self._factors(step / self._steps)
        self._set(factor)

    def _set(self, factor: float) -> None:
        for optimizer, rates in self._rates:
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                if isinstance(group["lr"], Tensor):
                    group["lr"].fill_(rate * factor)
                else:
                    group["lr"] = rate * factor

    def after_epoch(self, accuracy: float) -> None:
        """Take note of a validation accuracy."""
        for each in self._plateaus:
            each.step(accuracy)

    def state(self) -> dict[str, Any] | None:
        """Return the counters for JSON, those of all optimizers being the same; None of none."""
        if not self._plateaus:
            return None
        state = {key: getattr(self._plateaus[0], key) for key in _PLATEAU_STATE}
        return {**state, "best": finite_or_none(state["best"])}

    def load(self, state: Mapping[str, Any] | None) -> None:
        """Restore what :meth:`state` returned."""
        if state is None:
            return
        for each in self._plateaus:
            vars(each).update({**state, "best": or_minus_infinity(state["best"])})
