"""The optimizers of a phase, and their state as a checkpoint holds it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from hypermask_fast.methods.base import Learner
from hypermask_fast.methods.protocol import ParameterGroup
from hypermask_fast.optim.factored_adam import FactoredAdam

MAIN = "main"
"""Name of the optimizer whose state stands in a checkpoint without a name."""


def _options(group: ParameterGroup, lr: float) -> dict[str, Any]:
    rate = lr if group.lr is None else group.lr
    device = group.params[0].device
    # Where a CUDA graph reads it anew in each step. One for each group: a schedule multiplies them
    # one after the other.
    in_tensor = device.type not in ("cpu", "meta")
    return {
        "params": list(group.params),
        "lr": torch.full((), rate, dtype=torch.float32, device=device) if in_tensor else rate,
        "row_sparse": group.row_sparse,
        "step_in_backward": bool(group.in_backward),
    }


def make_optimizers(
    learner: Learner,
    *,
    lr: float,
    weight_decay: float,
    moments_dtype: torch.dtype | None,
    kind: type[FactoredAdam] = FactoredAdam,
) -> dict[str, Optimizer]:
    """Return new optimizers over a learner's parameters in its present phase, by name.

    A head that may be updated in the backward pass is.

    Args:
        learner: The learner.
        lr: Learning rate of the groups without one of their own.
        weight_decay, moments_dtype: As in :class:`FactoredAdam`.
        kind: Replaces it.
    """
    groups = [group for group in learner.parameter_groups(learner.phase) if group.params]
    return {
        name: kind(
            [_options(group, lr) for group in groups if group.optimizer == name],
            lr=lr,
            weight_decay=weight_decay,
            moments_dtype=moments_dtype,
        )
        for name in dict.fromkeys(group.optimizer for group in groups)
    }


def _prefix(name: str) -> str:
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
            tensors |= {f"{_prefix(name)}/{index}/{key}": v for key, v in entries.items()}
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
            if part == _prefix(name):
                index, _, field = rest.partition("/")
                entries.setdefault(int(index), {})[field] = value
        restored = [{**group, "betas": tuple(group["betas"])} for group in groups[name]]
        optimizer.load_state_dict({"state": entries, "param_groups": restored})
