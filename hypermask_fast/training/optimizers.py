"""The optimizers of a phase, and their state as a checkpoint holds it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from hypermask_fast.errors import ConfigError
from hypermask_fast.methods.base import Learner
from hypermask_fast.methods.protocol import ParameterGroup
from hypermask_fast.optim.factored_adam import FactoredAdam
from hypermask_fast.training.settings import TrainingSettings

MAIN = "main"
"""Name of the optimizer whose state stands in a checkpoint without a name."""


_MOMENTS: dict[str, torch.dtype | None] = {"float32": None, "bfloat16": torch.bfloat16}


def make_optimizer(
    groups: Sequence[ParameterGroup], settings: TrainingSettings, adam: type[FactoredAdam]
) -> Optimizer:
    """Return one optimizer over groups of parameters; see :func:`make_optimizers`."""
    options: list[dict[str, Any]] = [
        {"params": list(group.params), "lr": settings.lr if group.lr is None else group.lr}
        for group in groups
    ]
    if settings.optimizer == "adam":
        if any(p.dtype == torch.float16 for group in groups for p in group.params):
            raise ConfigError(
                "the network is of torch.float16 and the optimizer 'adam', whose second moments "
                "and eps of 1e-8 are 0 there; use bfloat16, float32 under autocast, or "
                "optimizer='sgd'"
            )
        for of_group, group in zip(options, groups, strict=True):
            of_group["row_sparse"] = group.row_sparse
            of_group["step_in_backward"] = bool(group.in_backward)
            device = group.params[0].device
            if device.type not in ("cpu", "meta"):
                # A CUDA graph reads it anew in each step.
                of_group["lr"] = torch.full((), of_group["lr"], dtype=torch.float32, device=device)
        return adam(
            options,
            lr=settings.lr,
            betas=(settings.adam_beta1, 0.999),
            weight_decay=settings.weight_decay,
            moments_dtype=_MOMENTS[settings.moments],
        )
    kind = {"sgd": torch.optim.SGD, "rmsprop": torch.optim.RMSprop}[settings.optimizer]
    shared: dict[str, Any] = {"momentum": settings.momentum, "weight_decay": settings.weight_decay}
    return kind(options, lr=settings.lr, **shared)


def make_optimizers(
    learner: Learner, settings: TrainingSettings, *, adam: type[FactoredAdam] = FactoredAdam
) -> dict[str, Optimizer]:
    """Return new optimizers over a learner's parameters in its present phase, by name.

    A head that may be updated in the backward pass is, by Adam. Rows of tables that have no
    gradient do not move.

    Args:
        learner: The learner.
        settings: The kind of optimizer and its numbers; a group may have a rate of its own.
        adam: Replaces FactoredAdam.
    """
    groups = [group for group in learner.parameter_groups(learner.phase) if group.params]
    return {
        name: make_optimizer([group for group in groups if group.optimizer == name], settings, adam)
        for name in dict.fromkeys(group.optimizer for group in groups)
    }


def first_rate(optimizers: Mapping[str, Optimizer]) -> float:
    """Return the learning rate of the first group of the first optimizer."""
    rate = next(iter(optimizers.values())).param_groups[0]["lr"]
    # A tensor holds it in float32, whose digits these are.
    return float(f"{float(rate):.7g}") if isinstance(rate, Tensor) else float(rate)


def prefix_of(name: str) -> str:
    """Return how the names of an optimizer's tensors begin."""
    return "optimizer" if name == MAIN else f"optimizer.{name}"


def optimizer_state(
    optimizers: Mapping[str, Optimizer],
) -> tuple[dict[str, Tensor], dict[str, list[dict[str, Any]]]]:
    """Return the tensors of optimizers by ``optimizer/index/name``, and their groups for JSON.

    The first part is ``optimizer.NAME`` for those that are not the main one.
    """
    tensors: dict[str, Tensor] = {}
    groups = {}
    for name, optimizer in optimizers.items():
        saved = optimizer.state_dict()
        for index, entries in saved["state"].items():
            kept = {key: v for key, v in entries.items() if isinstance(v, Tensor)}
            tensors |= {f"{prefix_of(name)}/{index}/{key}": v for key, v in kept.items()}
        groups[name] = [{**group, "lr": float(group["lr"])} for group in saved["param_groups"]]
    return tensors, groups


def load_optimizer_state(
    optimizers: Mapping[str, Optimizer],
    tensors: Mapping[str, Tensor],
    groups: Mapping[str, list[dict[str, Any]]],
) -> None:
    """Restore what :func:`optimizer_state` returned."""
    for name, optimizer in optimizers.items():
        entries: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            part, _, rest = key.partition("/")
            if part == prefix_of(name):
                index, _, field = rest.partition("/")
                entries.setdefault(int(index), {})[field] = value
        # JSON has no tuples.
        restored = [
            {k: tuple(v) if k == "betas" else v for k, v in group.items()} for group in groups[name]
        ]
        optimizer.load_state_dict({"state": entries, "param_groups": restored})
