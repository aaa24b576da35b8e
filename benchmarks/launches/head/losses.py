"""What sums up a step's losses: the total, the gradients of its terms, and what completes it."""

from __future__ import annotations

from functools import partial

import torch

from benchmarks.launches.launch import Launch, Run, floats
from hypermask_fast.kernels.losses import complete, term_gradients, total

_FACTORS = (0.5, 0.01)


def _total() -> Run:
    return partial(total, floats(), (floats(), floats()), _FACTORS)


def _gradients() -> Run:
    return partial(term_gradients, floats(), _FACTORS)


def _complete() -> Run:
    squares = floats(dtype=torch.float64)
    return partial(complete, squares, 4, floats(), [floats(), floats()], 0.5)


LAUNCHES = {
    "total": Launch(_total, "total", ({},)),
    "gradients": Launch(_gradients, "total", ({},)),
    "complete": Launch(_complete, "complete", ({},)),
}
