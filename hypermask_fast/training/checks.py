"""What a trainer asks of what it is given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from hypermask_fast.errors import CheckpointError, ConfigError, shown
from hypermask_fast.scenarios.task import Task, check_task
from hypermask_fast.training.settings import TrainingSettings

_KEYS = {"task", "manifest", "step", "best_accuracy"}
_PARTS = ("learner", "task", "best", "rng")


def check_trainable(task: Task, settings: TrainingSettings) -> None:
    """Raise TypeError where a task is none, ConfigError where it lacks data that is measured."""
    check_task(task)
    if settings.validates and not len(task.validation):
        raise ConfigError(
            f"task {task.name!r} has no validation examples, which selection="
            f"{settings.selection!r} and schedule={settings.schedule!r} measure; hold some out or "
            "use 'last' and 'constant'"
        )


def check_state(tensors: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Raise CheckpointError where a state is not what a trainer returned."""
    for name, value in (("tensors", tensors), ("state", state)):
        if not isinstance(value, Mapping):
            raise CheckpointError(f"{name} are {shown(value)}; give what Trainer.state() returned")
    if _KEYS - state.keys():
        raise CheckpointError(
            f"the state has {sorted(state)} and lacks {sorted(_KEYS - state.keys())}; give what "
            "Trainer.state() returned"
        )


def parts_of(
    tensors: Mapping[str, Tensor], state: Mapping[str, Any], method: str
) -> dict[str, dict[str, Tensor]]:
    """Return the tensors of a trainer's state by their parts.

    Args:
        tensors, state: What ``Trainer.state()`` returned.
        method: Of the learner that is to take them.

    Raises:
        CheckpointError: They are none, or of another method.
    """
    check_state(tensors, state)
    saved = state.get("method")
    if saved not in (None, method):
        raise CheckpointError(
            f"the checkpoint is of a {saved} and the learner is a {method}; resume with the "
            "settings of the run"
        )
    parts: dict[str, dict[str, Tensor]] = {name: {} for name in _PARTS}
    for name, value in tensors.items():
        part, _, rest = name.partition("/")
        if part in parts:
            parts[part][rest] = value
        elif not part.startswith("optimizer"):
            raise CheckpointError(
                f"the checkpoint has a tensor {name!r}, which is of no part of a trainer; it was "
                "made by another version"
            )
    return parts
