"""Adam on tables of embeddings: of the presets, and of many tasks."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from benchmarks.launches.launch import Launch, Run, floats
from hypermask_fast.kernels.optim.rows import adam_rows


def _make(rows: int, width: int) -> Run:
    table, first, grad = (floats(rows, width) for _ in range(3))
    options: dict[str, Any] = {"lr": floats(), "beta1": 0.9, "beta2": 0.999, "eps": 1e-8}
    options |= {"step": torch.ones(()), "finite": torch.ones((), dtype=torch.bool)}
    options |= {"weight_decay": 0.0, "decoupled": False}
    return partial(adam_rows, table, first, floats(rows, width, positive=True), grad, **options)


LAUNCHES = {
    f"{rows}x{width}": Launch(partial(_make, rows, width), "adam_rows", ({},))
    for rows, width in ((128, 128), (128, 24), (256, 2000))
}
