"""What a learner's state_dict holds beside weights: its tasks, as a tensor of JSON text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from hypermask_fast.errors import CheckpointError, shown
from hypermask_fast.held import Fixed

EXTRA_STATE = "_extra_state"
"""The name that PyTorch gives it."""


def weights_of(module: nn.Module, *, keep_vars: bool = False) -> dict[str, Tensor]:
    """Return the tensors of a learner's ``state_dict`` but that of its tasks."""
    state = module.state_dict(keep_vars=keep_vars)
    return {
        name: value
        for name, value in state.items()
        if name != EXTRA_STATE and isinstance(value, Tensor)
    }


def fixed_of(module: nn.Module) -> dict[str, Tensor]:
    """Return those of :func:`weights_of` that learning cannot change."""
    fixed = [name for name, part in module.named_modules() if isinstance(part, Fixed)]
    return {
        name: value
        for name, value in (weights_of(module) if fixed else {}).items()
        if any(name.startswith(f"{prefix}.") for prefix in fixed)
    }


def moving_of(module: nn.Module) -> dict[str, Tensor]:
    """Return those of :func:`weights_of` that learning may change."""
    fixed = fixed_of(module)
    return {name: value for name, value in weights_of(module).items() if name not in fixed}


def check_storable(module: nn.Module) -> None:
    """Raise CheckpointError where a state is no tensor, which a checkpoint could not hold."""
    for name, value in module.state_dict().items():
        if not isinstance(value, Tensor):
            raise CheckpointError(
                f"{name} of the network is a {type(value).__name__}, and a checkpoint holds "
                "tensors; let its get_extra_state() return a tensor"
            )


def encoded(state: Mapping[str, Any]) -> Tensor:
    """Return JSON values as uint8 (bytes,), which every format of tensors takes."""
    return torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)


def extra_of(state_dict: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return what a learner's ``state_dict`` says of its tasks.

    Args:
        state_dict: Of a learner, or of a module with a learner in it.
        prefix: Of the learner's names.

    Raises:
        CheckpointError: It says nothing, as those of earlier versions, or what is no learner's.
    """
    if not isinstance(state_dict, Mapping):
        raise CheckpointError(
            f"the state is {shown(state_dict)}; give what state_dict() of a learner returned"
        )
    name = prefix + EXTRA_STATE
    if name not in state_dict:
        raise CheckpointError(
            f"the state has no {name}, which says what tasks a learner has learned, so they would "
            "not be protected; load its parts (net, hypernetwork, ...) one by one, after the tasks "
            "were added, begun and ended"
        )
    return decoded(state_dict[name])


def decoded(value: object) -> dict[str, Any]:
    """Return what :func:`encoded` was given; CheckpointError where it is not that."""
    state: Any = None
    if isinstance(value, Tensor) and value.dtype == torch.uint8:
        with suppress(ValueError, TypeError):
            state = json.loads(bytes(value.tolist()))
    if not isinstance(state, dict) or {"tasks", "learned", "current", "capacity"} - set(state):
        raise CheckpointError(
            f"the state's {EXTRA_STATE} is {str(value)[:60]!r} and not a learner's tasks; give "
            "what state_dict() of a learner returned"
        )
    return state


def check_fits(weights: Mapping[str, Any], own: Mapping[str, Any], rows: tuple[int, int]) -> None:
    """Raise where the weights of a state are not those of a learner.

    Args:
        weights: The state.
        own: The learner's.
        rows: For how many tasks the state has rows, and the learner.

    Raises:
        CheckpointError: Names or shapes differ, but for tables that the learner can make longer.
    """
    missing, unknown = own.keys() - weights.keys(), weights.keys() - own.keys()
    if missing or unknown:
        names = [f"lacks {name}" for name in sorted(missing)[:3]]
        names += [f"has {name}" for name in sorted(unknown)[:3]]
        raise CheckpointError(
            f"the state {', '.join(names)}, unlike the learner; load it into a learner of the same "
            "settings over the same network"
        )
    saved, present = rows
    for name, value in own.items():
        if name.endswith(EXTRA_STATE):
            continue
        shape, given = tuple(value.shape), tuple(weights[name].shape)
        grown = (saved, *shape[1:]) if shape[:1] == (present,) and saved > present else shape
        if given not in (shape, grown):
            raise CheckpointError(
                f"the state has {name} of shape {given} and the learner of {shape}; load it into a "
                "new learner of the same settings, capacity included"
            )
