"""The sums that end a pass over a head: of two programs a multiprocessor, and of many."""

from __future__ import annotations

from functools import partial

from benchmarks.launches.launch import Launch, Run, floats
from hypermask_fast.kernels.head.finish import CONFIGS, finish


def _make(programs: int, rows: int, width: int) -> Run:
    return partial(finish, floats(programs, rows, width), floats(programs))


LAUNCHES = {
    f"{programs}x{rows}x{width}": Launch(
        partial(_make, programs, rows, width),
        "finish",
        CONFIGS,
    )
    for programs, rows, width in ((264, 5, 25), (528, 10, 100))
}
