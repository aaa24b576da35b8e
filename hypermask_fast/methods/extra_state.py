"""What a learner's state_dict holds beside weights: its tasks, as a tensor of JSON text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hypermask_fast.errors import CheckpointError

EXTRA_STATE = "_extra_state"
"""The name that PyTorch gives it."""


def weights_of(module: nn.Module, *, keep_vars: bool = False) -> dict[str, Tensor]:
    """Return the parameters and buffers of a module's ``state_dict``, without extra states."""
    state = module.state_dict(keep_vars=keep_vars)
    return {name: value for name, value in state.items() if not name.endswith(EXTRA_STATE)}


def encoded(state: Mapping[str, Any]) -> Tensor:
    """Return JSON values as uint8 (bytes,), which every format of tensors takes."""
    return torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)


def decoded(value: object) -> dict[str, Any]:
    """Return what :func:`encoded` was given.

    Raises:
        CheckpointError: It is not that.
    """
    try:
        assert isinstance(value, Tensor)
        state = json.loads(bytes(value.tolist()))
        missing = {"tasks", "learned", "current", "capacity"} - set(state)
    except (AssertionError, ValueError, TypeError):
        state, missing = {}, {"tasks"}
    if missing:
        raise CheckpointError(
            f"the state's {EXTRA_STATE} is {str(value)[:60]!r} and not a learner's tasks; give what "
            "state_dict() of a learner returned"
        )
    return dict(state)


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
                f"the state has {name} of shape {given} and the learner of {shape}, with rows for "
                f"{saved} and {present} tasks; load it into a new learner of the same settings"
            )
