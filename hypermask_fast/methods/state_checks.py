"""The JSON part of a learner's state: what has another type or id is refused before it is taken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from hypermask_fast.errors import CheckpointError, shown
from hypermask_fast.head.shard import RowShard

_MADE = "give what task_state() returned"


def check_state(tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Raise CheckpointError where a state is not what ``task_state()`` of a learner returned."""
    for name, value in (("tensors", tensors), ("state", state)):
        if not isinstance(value, Mapping):
            raise CheckpointError(f"{name} are {shown(value)}; {_MADE}")
    lacking = {"tasks", "learned", "current"} - state.keys()
    if lacking:
        raise CheckpointError(f"the state has {sorted(state)} and lacks {sorted(lacking)}; {_MADE}")
    _check_records(state["tasks"])
    count = len(state["tasks"])
    check_ids("learned", state["learned"], count)
    if state["current"] is not None:
        check_ids("current", [state["current"]], count)
    check_count(state, "capacity", default=0)


def check_count(state: Mapping[str, Any], name: str, *, default: int | None = None) -> int:
    """Return an entry of a state; CheckpointError where it is no integer of at least 0.

    Args:
        state: The state.
        name: Of the entry.
        default: What stands for an entry that is not there; None: it must be.
    """
    value = state.get(name, default)
    if type(value) is not int or value < 0:
        raise CheckpointError(
            f"the state has {name}={shown(value)}, expected an integer of at least 0; {_MADE}"
        )
    return value


def check_ids(name: str, value: object, count: int) -> None:
    """Raise CheckpointError where a value is not some of ``count`` tasks' ids, each once."""
    is_list = isinstance(value, list | tuple)
    ids = list(value) if isinstance(value, list | tuple) else []
    if not is_list or not all(type(i) is int and 0 <= i < count for i in ids):
        raise CheckpointError(
            f"the state has {name}={shown(value)}, expected ids of its {count} tasks; {_MADE}"
        )
    if len(set(ids)) != len(ids):
        raise CheckpointError(f"the state has {name}={shown(value)}, each id once; {_MADE}")


def check_rows(state: Mapping[str, Any], shard: RowShard | None) -> None:
    """Raise CheckpointError where a state is of other rows of a head than a learner has."""
    own = None if shard is None else [shard.first, shard.last, shard.size]
    if state.get("rows") != own:
        raise CheckpointError(
            f"the state has rows={shown(state.get('rows'))} and the learner rows={own} (first, "
            "last and all of a head that processes share, None: all); exchange it by "
            "save_sharded() and load_sharded()"
        )


def check_phase(state: Mapping[str, Any], phases: Sequence[str]) -> None:
    """Raise CheckpointError where the phase of a state is none that the learner has."""
    if state.get("phase", "") not in ("", *phases):
        raise CheckpointError(
            f"the state has phase={shown(state['phase'])}, expected one of {', '.join(phases)}; "
            f"{_MADE}"
        )


def _check_records(tasks: object) -> None:
    if not isinstance(tasks, list | tuple):
        raise CheckpointError(f"the state has tasks={shown(tasks)}, expected a list; {_MADE}")
    for task in tasks:
        name = task.get("name") if isinstance(task, Mapping) else None
        classes = task.get("classes", ()) if isinstance(task, Mapping) else ()
        known = isinstance(classes, list | tuple) and all(type(i) is int for i in classes)
        if not isinstance(name, str) or (classes is not None and not (known and classes)):
            raise CheckpointError(
                f"the state has the task {shown(task)}, expected a name and integer classes; "
                f"{_MADE}"
            )
        if classes is not None and len(set(classes)) != len(classes):
            raise CheckpointError(
                f"the state has the task {shown(task)}, whose classes come twice; {_MADE}"
            )
    for place, task in enumerate(tasks):
        if task.get("like") is not None:
            check_ids("like", [task["like"]], place)
    names = [task["name"] for task in tasks]
    if len(set(names)) != len(names):
        raise CheckpointError(f"the state has tasks called {names}, each name once; {_MADE}")
