"""Schedules of the learning rate, and their state as a checkpoint holds it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, ReduceLROnPlateau
from torch.optim.optimizer import Optimizer

from hypermask_fast.training.settings import WATCHING

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


class CosinePlateau:
    """ExSSNeT's two schedulers, both stepped after every epoch: a cosine to 0 and a plateau.

    The plateau waits for a value that falls, and is given accuracies: where they rise it divides
    the rate by ten after epochs 12, 23, 34 and 45, as published.

    Args:
        rates: To begin with.
        epochs: Of the phase.

    Attributes:
        rates: The present ones.
    """

    def __init__(self, rates: list[float], epochs: int) -> None:
        self._begun = list(rates)
        groups = [{"params": [nn.Parameter(torch.zeros(0))], "lr": rate} for rate in rates]
        # Its rates are numbers, whatever those of the optimizers that train are.
        self._optimizer = torch.optim.SGD(groups, lr=1.0)
        self._cosine = CosineAnnealingLR(self._optimizer, max(1, epochs))
        self._plateau = ReduceLROnPlateau(self._optimizer, factor=0.1, patience=10)
        # PyTorch warns where a scheduler steps and no optimizer did.
        self._optimizer.step()

    @property
    def rates(self) -> list[float]:
        return [group["lr"] for group in self._optimizer.param_groups]

    def after_epoch(self, accuracy: float) -> None:
        """Step both."""
        self._cosine.step()
        self._plateau.step(accuracy)

    def state(self) -> dict[str, Any]:
        """Return rates and counters for JSON."""
        state = {key: getattr(self._plateau, key) for key in _PLATEAU_STATE}
        state["best"] = finite_or_none(state["best"])
        return {**state, "begun": self._begun, "rates": self.rates}

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state` returned; where the first rates are others, in proportion."""
        best = math.inf if state["best"] is None else state["best"]
        counters = {key: state[key] for key in _PLATEAU_STATE}
        vars(self._plateau).update({**counters, "best": best})
        self._cosine.last_epoch = state["last_epoch"]
        saved = zip(state["rates"], state["begun"], self._begun, strict=True)
        rates = [rate if old == new else rate * (new / old) for rate, old, new in saved]
        for group, rate in zip(self._optimizer.param_groups, rates, strict=True):
            group["lr"] = rate


def _half_cosine(done: float) -> float:
    return 0.5 + 0.5 * math.cos(math.pi * done)


def _after_milestones(done: float) -> float:
    return next((factor for begins, factor in reversed(MILESTONES) if done >= begins), 1.0)


_FACTORS = {
    "cosine": _half_cosine,
    "cosine_epochs": _half_cosine,
    "milestones": _after_milestones,
}


class Schedule:
    """The learning rates of a phase's optimizers, step by step.

    Args:
        kind: "constant"; "cosine", from the rate to 0 over the phase step by step, or
            "cosine_epochs", epoch by epoch; "milestones", by :data:`MILESTONES`; "plateau"
            (HyperMask on CIFAR-100), sqrt(0.1) of the rate after 5 epochs of no better validation
            accuracy; or "cosine_plateau" (ExSSNeT), as :class:`CosinePlateau`.
        optimizers: New, with the rates to begin with.
        steps: Of the phase.
        warmup_steps: Steps over which the rate rises linearly from 0. Default 0.
        epoch_steps: Steps of an epoch. Default 1.
    """

    def __init__(
        self,
        kind: str,
        optimizers: Iterable[Optimizer],
        *,
        steps: int,
        warmup_steps: int = 0,
        epoch_steps: int = 1,
    ) -> None:
        self.watches = kind in WATCHING
        self._factor = _FACTORS.get(kind)
        # A factor that stands still for an epoch is one over epochs.
        self._still = epoch_steps if kind == "cosine_epochs" else 1
        self._steps, self._warmup_steps = max(1, round(steps / self._still)), warmup_steps
        optimizers = list(optimizers)
        # By optimizer: what it loads replaces its groups.
        self._rates = [
            (each, [float(group["lr"]) for group in each.param_groups]) for each in optimizers
        ]
        self._plateaus = [
            ReduceLROnPlateau(each, mode="max", factor=0.1**0.5, patience=5, min_lr=5e-7)
            for each in (optimizers if kind == "plateau" else ())
        ]
        self._both = None
        if kind == "cosine_plateau":
            rates = [rate for _, of_one in self._rates for rate in of_one]
            self._both = CosinePlateau(rates, round(steps / epoch_steps))

    def before_step(self, step: int) -> None:
        """Set the rates of a step of the phase, counted from 0."""
        if self._both is not None:
            self._set_each(self._both.rates)
            return
        if self._factor is None and step >= self._warmup_steps:
            if self._warmup_steps and step == self._warmup_steps:
                self._set(1.0)
            return
        factor = min(1.0, (step + 1) / self._warmup_steps) if self._warmup_steps else 1.0
        if self._factor is not None:
            factor *= self._factor(step // self._still / self._steps)
        self._set(factor)

    def _set(self, factor: float) -> None:
        self._set_each([rate * factor for _, rates in self._rates for rate in rates])

    def _set_each(self, rates: list[float]) -> None:
        groups = [group for optimizer, _ in self._rates for group in optimizer.param_groups]
        for group, rate in zip(groups, rates, strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def after_epoch(self, accuracy: float) -> None:
        """Take note of a validation accuracy."""
        if self._both is not None:
            self._both.after_epoch(accuracy)
        for each in self._plateaus:
            each.step(accuracy)

    def state(self) -> dict[str, Any] | None:
        """Return the counters for JSON, those of all optimizers being the same; None of none."""
        if self._both is not None:
            return self._both.state()
        if not self._plateaus:
            return None
        state = {key: getattr(self._plateaus[0], key) for key in _PLATEAU_STATE}
        return {**state, "best": finite_or_none(state["best"])}

    def load(self, state: Mapping[str, Any] | None) -> None:
        """Restore what :meth:`state` returned."""
        if state is None:
            return
        if self._both is not None:
            self._both.load(state)
        for each in self._plateaus:
            vars(each).update({**state, "best": or_minus_infinity(state["best"])})
