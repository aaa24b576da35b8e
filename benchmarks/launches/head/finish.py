"""The sums that end a pass over a head: of two programs a multiprocessor, and of many."""

from __future__ import annotations

from functools import partial

import torch

from benchmarks.launches.launch import Launch, Run, floats
from hypermask_fast.kernels.head.finish import CONFIGS, finish


def _make(programs: int, rows: int, width: int) -> Run:
    return partial(finish, floats(programs, rows, width), floats(programs))


def _torch(programs: int, rows: int, width: int) -> Run:
    parts, squares = floats(programs, rows, width), floats(programs)
    return lambda: (
        parts.sum(0, dtype=torch.float64).to(parts.dtype),
        squares.sum(dtype=torch.float64),
    )


LAUNCHES = {
    f"{programs}x{rows}x{width}": Launch(
        partial(_make, programs, rows, width),
        "finish",
        CONFIGS,
        partial(_torch, programs, rows, width),
    )
    for programs, rows, width in ((264, 5, 25), (528, 10, 100))
}
