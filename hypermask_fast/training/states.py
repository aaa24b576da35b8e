"""The parts of a trainer's state that need no examples: the learner's, and the random one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hypermask_fast.conversion.entries import check_manifest
from hypermask_fast.errors import CheckpointError
from hypermask_fast.methods.base import Learner
from hypermask_fast.methods.extra_state import EXTRA_STATE, check_storable, fixed_of, weights_of
from hypermask_fast.training.checks import check_state

Parts = Mapping[str, Mapping[str, Tensor]]
_PARTS = ("learner", "task", "best", "rng")


def parts_of(learner: Learner, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> Parts:
    """Return the tensors of a trainer's state by part and name, but those of optimizers.

    Raises:
        CheckpointError: It is no such state, or of another method.
    """
    check_state(tensors, state)
    own, saved = type(learner).__name__, state.get("method")
    if saved not in (None, own):
        raise CheckpointError(
            f"the checkpoint is of a {saved} and the learner is a {own}; resume with the "
            "settings of the run"
        )
    parts: dict[str, dict[str, Tensor]] = {name: {} for name in _PARTS}
    for name, value in tensors.items():
        part, _, rest = name.partition("/")
        if part in parts:
            parts[part][rest] = value
        elif not part.startswith("optimizer"):
            raise CheckpointError(
                f"the checkpoint has a tensor {name!r}, which is of no part of a trainer; it "
                "was made by another version"
            )
    return parts


def learner_state(learner: Learner) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return what :func:`load_learner` loads: tensors by part and name, and JSON.

    Raises:
        CheckpointError: A module of the network has a state of its own that is no tensor.
    """
    check_storable(learner)
    task_tensors, task_state = learner.task_state()
    tensors = {f"learner/{name}": value for name, value in weights_of(learner).items()}
    tensors |= {f"task/{name}": value for name, value in task_tensors.items()}
    state = {
        "method": type(learner).__name__,
        "manifest": learner.manifest(),
        "task": task_state,
    }
    return tensors, state


def random_state(device: torch.device) -> dict[str, Tensor]:
    """Return the state of the global generators, for :func:`load_random_state`."""
    tensors = {"rng/cpu": torch.get_rng_state()}
    if device.type == "cuda":
        tensors["rng/cuda"] = torch.cuda.get_rng_state(device)
    return tensors


def load_random_state(parts: Parts, device: torch.device) -> None:
    """Give the global generators a state, of which :func:`parts_of` made the parts."""
    torch.set_rng_state(parts["rng"]["cpu"].cpu())
    if "cuda" in parts["rng"] and device.type == "cuda":
        torch.cuda.set_rng_state(parts["rng"]["cuda"].cpu(), device)


def _outline(manifest: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{key: entry.get(key) for key in ("name", "shape")} for entry in manifest]


def check_network(learner: Learner, state: Mapping[str, Any]) -> None:
    """Raise CheckpointError where a state is of another network than a learner's."""
    # What else is in the manifests depends on the state that is loaded.
    check_manifest(*map(_outline, (state["manifest"], learner.manifest())))


def load_learner(learner: Learner, parts: Parts, state: Mapping[str, Any]) -> None:
    """Load a learner, with its tasks and what it keeps of them while one is learned.

    Args:
        learner: The learner.
        parts: Of the state's tensors, by :func:`parts_of`.
        state: The JSON part of the state.

    Raises:
        CheckpointError: The state belongs to another network or to other settings; the learner's
            tasks are then as before.
    """
    before, fixed = learner.task_state(), fixed_of(learner)
    check_network(learner, state)
    try:
        learner.load_task_state(dict(parts["task"]), state["task"])
        check_manifest(state["manifest"], learner.manifest())
        tasks = {EXTRA_STATE: learner.get_extra_state()}
        learner.load_state_dict({**parts["learner"], **tasks})
    except CheckpointError:
        learner.load_task_state(*before)
        if fixed:
            tasks = {EXTRA_STATE: learner.get_extra_state()}
            learner.load_state_dict({**fixed, **tasks}, strict=False)
        raise
