"""The optimizer of a task and its schedule, and their state as a checkpoint holds it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau

from hypermask_fast.methods.base import Learner
from hypermask_fast.optim.factored_adam import FactoredAdam

_PLATEAU_STATE = ("best", "num_bad_epochs", "cooldown_counter", "last_epoch")


def make_optimizer(
    learner: Learner, *, lr: float, weight_decay: float, moments_dtype: torch.dtype | None
) -> FactoredAdam:
    """Return a new Adam over a learner's parameters, which updates the head in the backward pass.

    On a GPU the learning rate is a tensor there, which a CUDA graph reads anew in each step.
    """
    tables = learner.tables()
    held = {id(table) for table in tables}
    rest = [p for p in learner.parameters() if p.requires_grad and id(p) not in held]
    groups: list[dict[str, Any]] = [{"params": rest}, {"params": tables, "row_sparse": True}]
    device = next(learner.parameters()).device
    if device.type != "cpu":
        for group in groups:
            # One each: a schedule multiplies them one after the other.
            group["lr"] = torch.full((), lr, dtype=torch.float32, device=device)
    return FactoredAdam(
        groups,
        lr=lr,
        weight_decay=weight_decay,
        moments_dtype=moments_dtype,
        step_in_backward=learner.updatable_hypernetwork() is not None,
    )


def optimizer_state(
    optimizer: torch.optim.Optimizer,
) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Return the tensors of an optimizer's state by ``index/name``, and its groups for JSON."""
    saved = optimizer.state_dict()
    tensors = {
        f"{index}/{key}": value
        for index, entries in saved["state"].items()
        for key, value in entries.items()
    }
    return tensors, [{**group, "lr": float(group["lr"])} for group in saved["param_groups"]]


def load_optimizer_state(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], groups: list[dict[str, Any]]
) -> None:
    """Restore what :func:`optimizer_state` returned."""
    entries: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, _, key = name.partition("/")
        entries.setdefault(int(index), {})[key] = value
    restored = [{**group, "betas": tuple(group["betas"])} for group in groups]
    optimizer.load_state_dict({"state": entries, "param_groups": restored})


def make_plateau(optimizer: torch.optim.Optimizer) -> ReduceLROnPlateau:
    """Return HyperMask's schedule: sqrt(0.1) of the rate after 5 epochs of no better accuracy."""
    return ReduceLROnPlateau(optimizer, mode="max", factor=0.1**0.5, patience=5, min_lr=5e-7)


def finite_or_none(value: float) -> float | None:
    """Return a number as JSON can hold it."""
    return value if math.isfinite(value) else None


def or_minus_infinity(value: float | None) -> float:
    """Return what :func:`finite_or_none` made of the best value of none."""
    return -math.inf if value is None else value


def plateau_state(scheduler: ReduceLROnPlateau | None) -> dict[str, Any] | None:
    """Return the counters of a schedule for JSON."""
    if scheduler is None:
        return None
    state = {key: getattr(scheduler, key) for key in _PLATEAU_STATE}
    return {**state, "best": finite_or_none(state["best"])}


def load_plateau_state(scheduler: ReduceLROnPlateau, state: Mapping[str, Any]) -> None:
    """Restore what :func:`plateau_state` returned."""
    vars(scheduler).update({**state, "best": or_minus_infinity(state["best"])})
