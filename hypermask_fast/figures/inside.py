"""What is inside a learner: which entries its tasks use, and where their embeddings are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hypermask_fast.figures.charts import Array
from hypermask_fast.methods.base import Learner

_CHUNK = 2**20
_MOST_ENTRIES = 2**28
"""Entries of all tasks together that are held at once; beyond them every k-th one counts."""


@dataclass(frozen=True)
class Inside:
    """What the learned tasks have in common, tensor by tensor.

    Attributes:
        tasks: Names of the learned tasks.
        binary: Entries are kept or not; else every task has weights of its own.
        layers: Names of the tensors.
        sizes: Their entries that count, (layers,).
        shared: (layers, tasks, tasks): of masks, entries that both tasks keep; of weights, the
            products of the entries, summed.
        kept: (layers, tasks): of masks, entries that a task keeps; of weights, the sums of squares.
        by_any, by_all: Entries that any task keeps, and that all do, (layers,).
        every: Of each tensor every so many-th entry was looked at.
        embeddings: (tasks, dimensions); None where a method has none.
    """

    tasks: Sequence[str]
    binary: bool
    layers: Sequence[str]
    sizes: Array
    shared: Array
    kept: Array
    by_any: Array
    by_all: Array
    every: int
    embeddings: Array | None


def inside(learner: Learner) -> Inside | None:
    """Look into a learner, whose data are not needed.

    Returns:
        None where no task was learned, or all use the same weights.
    """
    ids = list(dict.fromkeys(learner.learned))
    if not ids:
        return None
    masks: Any = getattr(learner, "masks", None)
    read = masks if callable(masks) else learner.task_weights
    binary = read is masks
    first = read(ids[0])
    total = sum(tensor.numel() for tensor in first.values()) * len(ids)
    every = -(-total // _MOST_ENTRIES)
    layers = {name: [_entries(tensor, binary, every)] for name, tensor in first.items()}
    del first
    for task in ids[1:]:
        for name, tensor in _like(read(task), layers).items():
            layers[name].append(_entries(tensor, binary, every))
    layers = {
        name: each for name, each in layers.items() if len({len(entries) for entries in each}) == 1
    }
    if not layers:
        return None
    found = [_common(entries) for entries in layers.values()]
    table = getattr(getattr(learner, "hypernetwork", None), "embeddings", None)
    rows = table.detach()[ids].double().cpu().numpy() if isinstance(table, Tensor) else None
    return Inside(
        tasks=[learner.tasks[task].name for task in ids],
        binary=binary,
        layers=list(layers),
        sizes=np.array([len(entries[0]) for entries in layers.values()], dtype=np.float64),
        shared=np.stack([shared for shared, _, _ in found]),
        kept=np.stack([shared.diagonal() for shared, _, _ in found]),
        by_any=np.array([some for _, some, _ in found]),
        by_all=np.array([all_ for _, _, all_ in found]),
        every=every,
        embeddings=rows,
    )


def _like(tensors: Mapping[str, Tensor], layers: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if name in layers}


def _entries(tensor: Tensor, binary: bool, every: int) -> Tensor:
    flat = tensor.detach().flatten()[::every].cpu()
    return flat.ne(0) if binary else flat.float()


def _common(entries: Sequence[Tensor]) -> tuple[Array, float, float]:
    """Return the products of all pairs, and what any and what all have that is not 0."""
    count, size = len(entries), len(entries[0])
    products = torch.zeros(count, count, dtype=torch.float64)
    some = every = 0
    for begin in range(0, size, _CHUNK):
        block = torch.stack([each[begin : begin + _CHUNK] for each in entries])
        used = block.ne(0)
        some += int(used.any(0).sum())
        every += int(used.all(0).sum())
        block = block.double()
        products += block @ block.T
    return products.numpy(), float(some), float(every)
