"""A learner whose head processes share, and its optimizers, in a checkpoint; and back in others."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from hypermask_fast.errors import CheckpointError
from hypermask_fast.fields import check_value
from hypermask_fast.files import sharded_checkpoint
from hypermask_fast.head.shard import Place
from hypermask_fast.methods.base import Learner, check_learner
from hypermask_fast.methods.batches import check_optimizers
from hypermask_fast.methods.extra_state import weights_of
from hypermask_fast.training.divided import derive, divided_in, parts_of_state, whole_shard
from hypermask_fast.training.optimizers import MAIN, load_optimizer_state, optimizer_state
from hypermask_fast.training.states import check_network, learner_state, load_learner

Optimizers = Optimizer | Mapping[str, Optimizer] | None


def _by_name(optimizer: Optimizers) -> Mapping[str, Optimizer]:
    if optimizer is None:
        return {}
    found = {MAIN: optimizer} if isinstance(optimizer, Optimizer) else optimizer
    check_optimizers(found)
    return found


def _place(learner: Learner) -> Place:
    shard = whole_shard(learner)
    return Place(0, 1) if shard is None else shard.place


def save_sharded(
    path: str | os.PathLike[str], learner: Learner, optimizer: Optimizers = None
) -> None:
    """Write a learner, within a task or between two, and its optimizers to a checkpoint.

    Each process that shares the head writes its rows, so call it in all of them, with a folder that
    all reach. Any number of processes can load it, also one with the whole head, which can write
    such a checkpoint too. It is a folder of ``torch.distributed.checkpoint`` with an index of
    digests, put in place when it is whole: a kill leaves the old one or the new.

    Args:
        path: The folder. A checkpoint of this kind is replaced, everything else refused.
        learner: The learner.
        optimizer: Its optimizer, or several by name. Default: none is saved.

    Raises:
        CheckpointError: The path is taken or cannot be written, or a module of the network has a
            state of its own that is no tensor; in all processes.
        TypeError: An argument has another type.
    """
    target = Path(check_value("path", str, path, path=True))
    check_learner(learner)
    optimizers = _by_name(optimizer)
    tensors, of_learner = learner_state(learner)
    of_optimizers, groups = optimizer_state(optimizers)
    tensors |= of_optimizers
    shard = whole_shard(learner)
    parts = parts_of_state(tensors, divided_in(learner, optimizers, tensors), shard)
    of_learner["task"].pop("rows", None)
    state = {
        **of_learner,
        "optimizers": groups,
        "tensors": {
            name: [str(part.own.dtype).removeprefix("torch."), part.shape, part.dim]
            for name, part in parts.items()
        },
    }
    sharded_checkpoint.save(target, parts, state, _place(learner))


def load_sharded(
    path: str | os.PathLike[str], learner: Learner, optimizer: Optimizers = None
) -> None:
    """Load what :func:`save_sharded` wrote, in any number of processes, with its bits.

    Call it in all processes that share the learner's head. None of them ever holds more of the head
    than its own rows, once. All files are read before anything is changed; should one fail in the
    second reading, load it again.

    Args:
        path: The folder.
        learner: A learner of the same settings over the same network.
        optimizer: New optimizers as they were saved. Default: none is loaded.

    Raises:
        CheckpointError: It is missing or damaged, or of another learner or other optimizers; in all
            processes.
        TypeError: An argument has another type.
    """
    target = Path(check_value("path", str, path, path=True))
    check_learner(learner)
    optimizers, place = _by_name(optimizer), _place(learner)
    state = sharded_checkpoint.read_state(target, place)
    if state["method"] != type(learner).__name__:
        raise CheckpointError(
            f"{target} is of a {state['method']} and the learner is a {type(learner).__name__}; "
            "give one of the same method"
        )
    if optimizers.keys() - state["optimizers"].keys():
        raise CheckpointError(
            f"{target} has the optimizers {sorted(state['optimizers'])} and {sorted(optimizers)} "
            "are to be loaded; give those that were saved, or none"
        )
    check_network(learner, state)
    tensors = _read(target, learner, state, with_optimizers=bool(optimizers))
    shard = learner.task_state()[1].get("rows")
    task = state["task"] if shard is None else {**state["task"], "rows": shard}
    parts: dict[str, dict[str, Tensor]] = {"learner": {}, "task": {}}
    for name, value in tensors.items():
        part, _, rest = name.partition("/")
        if part in parts:
            parts[part][rest] = value
    load_learner(learner, parts, {**state, "task": task})
    groups = {name: state["optimizers"][name] for name in optimizers}
    load_optimizer_state(optimizers, tensors, groups)


def _read(
    path: Path, learner: Learner, state: Mapping[str, Any], *, with_optimizers: bool
) -> dict[str, Tensor]:
    """Return this process's part of the tensors that are to be loaded."""
    shard = whole_shard(learner)
    begins = ("learner/", "task/", *(["optimizer"] if with_optimizers else []))
    listed = {n: entry for n, entry in state["tensors"].items() if n.startswith(begins)}
    dims = {name: dim for name, (_, _, dim) in listed.items() if dim is not None}
    device = next(learner.parameters()).device
    head = {f"learner/{name}": value for name, value in weights_of(learner).items()}
    tensors = {}
    for name, (dtype, shape, _) in listed.items():
        own = list(shape)
        if name in dims:
            size = None if shard is None else shard.size
            if shape[dims[name]] != size:
                raise CheckpointError(
                    f"{path} has {name} of shape {tuple(shape)} and the learner's head has "
                    f"{size} rows; load it into a learner over the same network"
                )
            assert shard is not None
            own[dims[name]] = shard.rows
        # Counters of optimizers stay on the host.
        where = device if own else "cpu"
        kind = getattr(torch, dtype)
        present = head.get(name) if name in dims else None
        if present is not None and present.dtype == kind:
            tensors[name] = present  # not twice
        else:
            tensors[name] = torch.empty(own, dtype=kind, device=where)
    sharded_checkpoint.read(path, parts_of_state(tensors, dims, shard), _place(learner))
    derive(tensors)
    return tensors
