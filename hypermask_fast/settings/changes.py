"""Settings that are changed between the parts of a run: which may be, and what they do."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from hypermask_fast.errors import CheckpointError
from hypermask_fast.settings.config import RunConfig

FREE = (
    "device",
    "data_dir",
    "log_every",
    "checkpoint_every",
    "log",
    "graph",
    "compile",
    "shard_head",
)
"""What a run may go on with whatever it was before: where and how, and never what it learns."""

_BETWEEN_TASKS = ("optimizer", "moments", "schedule", "warmup_steps", "train_target", "adam_beta1")
"""What an optimizer has for the whole of a task."""

Changes = Mapping[str, tuple[Any, Any]]


def changed(before: RunConfig, now: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Return the settings that are not the same and not `FREE`: by name, both values.

    Settings that only one of the two networks or methods has come with None.
    """
    old, new = before.options(), now.options()
    names = [name for name in dict.fromkeys((*old, *new)) if name not in FREE]
    pairs = {name: (old.get(name), new.get(name)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def check_within_task(changes: Changes, task: str) -> None:
    """Raise CheckpointError where a change can only be made between tasks.

    Args:
        changes: As `changed` returns them.
        task: Name of the task that is being learned.
    """
    for name in _BETWEEN_TASKS:
        if name in changes:
            before, now = changes[name]
            raise CheckpointError(
                f"{name}={now!r} cannot replace {name}={before!r} within the task {task!r}, which "
                f"the checkpoint is in; put back {name}={before!r}"
            )


def carry_into(groups: Sequence[dict[str, Any]], changes: Changes, schedule: str) -> None:
    """Put changed numbers into the groups of a saved optimizer, which else keep those they had.

    Args:
        groups: As a checkpoint holds them.
        changes: As `changed` returns them.
        schedule: Of the learning rate; "plateau" has lowered what the groups hold.
    """
    for name in ("weight_decay", "momentum"):
        for group in groups:
            if name in changes and name in group:
                group[name] = changes[name][1]
    if "lr" not in changes:
        return
    before, now = changes["lr"]
    for group in groups:
        if math.isclose(group["lr"], before, rel_tol=1e-6):  # of float32 on CUDA
            group["lr"] = now
        elif schedule == "plateau":
            group["lr"] *= now / before


def described(changes: Changes) -> str:
    """Return changes as words: ``lr from 0.001 to 0.01, steps from 5 to 9``."""
    return ", ".join(f"{name} from {old!r} to {new!r}" for name, (old, new) in changes.items())
