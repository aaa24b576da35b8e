"""Steps that look ahead, of HNET's full heads for Split and Permuted MNIST, and a wide one."""

from __future__ import annotations

from functools import partial

import torch

from benchmarks.launches.head.step_rows import step_inputs
from benchmarks.launches.launch import Launch, Run
from hypermask_fast.kernels.head.ahead import CONFIGS, step_ahead


def _step(rows: int, width: int, earlier: int, dtype: torch.dtype = torch.float32) -> Run:
    tensors, numbers = step_inputs(rows, width, earlier, dtype)
    return partial(step_ahead, *tensors, eps=1e-8, **numbers)


_MAKES = {
    "split-4": partial(_step, 478_410, 25, 4),
    "permuted-4": partial(_step, 2_126_100, 50, 4),
    "permuted-9": partial(_step, 2_126_100, 100, 9),
    "permuted-9-bf16": partial(_step, 2_126_100, 100, 9, torch.bfloat16),
    "wide-15": partial(_step, 500_000, 256, 15),
}
LAUNCHES = {name: Launch(make, "step_ahead", CONFIGS) for name, make in _MAKES.items()}
