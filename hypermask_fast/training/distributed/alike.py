"""One learner in several processes: the same layout in all, and the state of the first one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hypermask_fast.head.shard import RowShard
from hypermask_fast.methods.base import Learner
from hypermask_fast.methods.extra_state import weights_of
from hypermask_fast.methods.sharded import divided_weights
from hypermask_fast.training.distributed.processes import Processes


def _whole_shape(value: Tensor, shard: RowShard | None) -> tuple[int, ...]:
    return tuple(value.shape) if shard is None else (shard.size, *value.shape[1:])


def check_same_layout(learner: Learner, processes: Processes) -> None:
    """Raise ValueError, in every process, where the processes have different learners.

    Args:
        learner: This process's.
        processes: The processes.
    """
    divided = divided_weights(learner)
    own = {
        name: f"{value.dtype} of shape {_whole_shape(value, divided.get(name))}, "
        f"requires_grad={value.requires_grad}"
        for name, value in weights_of(learner, keep_vars=True).items()
    }
    layouts = processes.all(own)
    for rank, layout in enumerate(layouts):
        for name in {**layouts[0], **layout}:
            first, other = layouts[0].get(name, "missing"), layout.get(name, "missing")
            if first != other:
                raise ValueError(
                    f"{name} is {first} in process 0 and {other} in process {rank}; build the same "
                    "learner in every process"
                )


def copy_weights(learner: Learner, processes: Processes) -> None:
    """Give every process the parameters and buffers of the first one, but rows that it shares."""
    divided = divided_weights(learner)
    processes.copy_([v for name, v in weights_of(learner).items() if name not in divided])


def copy_tasks(learner: Learner, processes: Processes) -> None:
    """Give every process the tasks of the first one and, within a task, what it keeps.

    Raises:
        ValueError: They have a head whose rows they share, and other tasks.
    """
    tensors, state = learner.task_state()
    if divided_weights(learner):
        _check_same_tasks(state, processes)
        return
    shapes = {name: (value.shape, value.dtype) for name, value in tensors.items()}
    state, shapes = processes.first((state, shapes))
    if not processes.is_first:
        device = next(learner.parameters()).device
        tensors = {
            name: torch.empty(shape, dtype=dtype, device=device)
            for name, (shape, dtype) in shapes.items()
        }
    processes.copy_(list(tensors.values()))
    if not processes.is_first:
        learner.load_task_state(tensors, state)


def _check_same_tasks(state: dict[str, Any], processes: Processes) -> None:
    """Raise where process 0 has other tasks, of which the others cannot have its rows."""
    states = processes.all({key: value for key, value in state.items() if key != "rows"})
    for rank, other in enumerate(states):
        for key in other:
            if other[key] != states[0].get(key):
                raise ValueError(
                    f"{key} is {states[0].get(key)} in process 0 and {other[key]} in process "
                    f"{rank}, and a head whose rows they share is not copied; call load_sharded() "
                    "in every process"
                )
