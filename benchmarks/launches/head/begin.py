"""What begins an update of a head, and the flags of its gradient where no kernel noted them."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from benchmarks.launches.launch import Launch, Run, floats
from hypermask_fast.kernels.finite import CONFIGS, flags_of
from hypermask_fast.kernels.head.begin import begin

_ADAM = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0}


def _begin() -> Run:
    steps = [torch.ones(()), torch.ones(())]
    numbers: dict[str, Any] = {"lr": floats(), "coefficient": floats(), "factor": 0.5}
    flags = torch.ones(1000, dtype=torch.int32)
    options: dict[str, Any] = {**_ADAM, "decoupled": False, "maximize": False}
    return partial(begin, flags, steps, **numbers, **options)


def _flags(entries: int) -> Run:
    return partial(flags_of, floats(entries))


LAUNCHES = {
    "begin": Launch(_begin, "begin", ({},)),
    "flags": Launch(partial(_flags, 2_036_010), "finite", CONFIGS),
}
