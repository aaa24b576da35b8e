"""The learner's part of a trainer's state, which needs no examples to be loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from hypermask_fast.conversion.entries import check_manifest
from hypermask_fast.errors import CheckpointError
from hypermask_fast.methods.base import Learner
from hypermask_fast.methods.extra_state import EXTRA_STATE, fixed_of
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
