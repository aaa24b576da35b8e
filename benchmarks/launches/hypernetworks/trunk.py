"""The trunk's layers of the presets, from the table of embeddings on."""

from __future__ import annotations

from functools import partial

import torch

from benchmarks.launches.launch import Launch, Run, floats
from hypermask_fast.kernels.hypernetworks import trunk


def _make(direction: str, rows: int, source: int, width: int, named: bool) -> Run:
    x = floats(128 if named else rows, source)
    ids = torch.arange(rows) if named else None
    weight, bias = floats(width, source), floats(width)
    if direction == "forward":
        return partial(trunk.forward, x, ids, weight, bias, "elu")
    return partial(trunk.backward, x, ids, weight, floats(rows, width), floats(rows, width), "elu")


LAUNCHES = {
    f"{direction}-{rows}x{source}x{width}": Launch(
        partial(_make, direction, rows, source, width, named), "trunk", ({},)
    )
    for direction in ("forward", "backward")
    for rows, source, width, named in (
        (5, 128, 25, True),
        (5, 25, 25, False),
        (10, 24, 100, True),
        (100, 100, 100, False),
    )
}
