"""Steps of the heads of Permuted MNIST and Split MNIST, and of a wide trunk."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.launches.head.factored_adam import tenth_step
from benchmarks.launches.launch import Launch, Run, floats, route
from hypermask_fast.head import passes
from hypermask_fast.head.adam import AdamOptions
from hypermask_fast.head.types import Head, HeadStep, Moments
from hypermask_fast.kernels.head import step_products, step_products_wgmma, step_runs
from hypermask_fast.kernels.head.step import CONFIGS, earlier_logits, step_rows

# The device knows its own; where there is none, those of an H100.
_PROCESSORS = None if torch.cuda.is_available() else 132


def step_inputs(
    rows: int, width: int, earlier: int, dtype: torch.dtype
) -> tuple[list[Tensor], dict[str, Any]]:
    """Return what a step of a head takes: its tensors, and its numbers by name.

    Args:
        rows, width, earlier: N, H and t.
        dtype: Of moments and targets.
    """
    moments = [
        floats(*shape, dtype=dtype, positive=positive)
        for shape in ((rows, width), (rows,))
        for positive in (False, True)
    ]
    tensors = [floats(rows, width), floats(rows), *moments, floats(rows)]
    tensors += [floats(earlier + 1, width), floats(earlier, rows, dtype=dtype)]
    numbers = {"coefficient": 1e-6 * floats(1), "scalars": tenth_step(), "processors": _PROCESSORS}
    return tensors, numbers


def _step(rows: int, width: int, earlier: int, dtype: torch.dtype = torch.float32) -> Run:
    tensors, numbers = step_inputs(rows, width, earlier, dtype)
    return partial(step_rows, *tensors, **numbers)


def _logits(rows: int, width: int, earlier: int) -> Run:
    head = floats(rows, width), floats(rows), floats(earlier, width)
    return partial(earlier_logits, *head, processors=_PROCESSORS)


def _whole(rows: int, width: int, earlier: int) -> Run:
    """The logits and the step, as a learner has them done."""
    moments = Moments(floats(rows, width), floats(rows, width, positive=True))
    bias_moments = Moments(floats(rows), floats(rows, positive=True))
    head = Head(floats(rows, width), floats(rows), moments, bias_moments)
    hidden, kept = floats(earlier + 1, width), floats(earlier, rows)
    adam = AdamOptions(1e-3, 0.9, 0.999, 1e-8, weight_decay=0.0, decoupled=False, step=10.0)
    step = HeadStep(head, floats(1, rows), hidden, kept, 1e-6 * floats(), adam)
    return lambda: (passes.logits(head, hidden[:1]), passes.step_rows(step))


_MAKES = {
    "permuted-0": partial(_step, 2_036_010, 100, 0),
    "permuted-9": partial(_step, 2_036_010, 100, 9),
    "permuted-9-bf16": partial(_step, 2_036_010, 100, 9, torch.bfloat16),
    "permuted-9-targets": partial(_logits, 2_036_010, 100, 9),
    "permuted-15": partial(_step, 2_036_010, 100, 15),
    "wide-9": partial(_step, 500_000, 256, 9),
}
_RUNS = {
    "split-0": partial(_step, 477_010, 25, 0),
    "split-4": partial(_step, 477_010, 25, 4),
    "split-4-bf16": partial(_step, 477_010, 25, 4, torch.bfloat16),
    "split-4-targets": partial(_logits, 477_010, 25, 4),
}
_FEW = {"permuted-16": partial(_step, 2_036_010, 100, 16)}
_PRODUCTS = {
    "permuted-99": partial(_step, 2_036_010, 100, 99),
    "permuted-99-bf16": partial(_step, 2_036_010, 100, 99, torch.bfloat16),
    "permuted-99-targets": partial(_logits, 2_036_010, 100, 99),
    "split-40": partial(_step, 477_010, 25, 40),
    "wide-127": partial(_step, 500_000, 128, 127),
}
LAUNCHES = {
    name: Launch(make, kernel, configs)
    for makes, kernel, configs in (
        (_MAKES, "step_rows", CONFIGS),
        (_RUNS, "step_rows_runs", step_runs.CONFIGS),
        (_FEW, "step_rows_products", step_products.CONFIGS),
        (_PRODUCTS, "step_rows_wgmma", step_products_wgmma.CONFIGS),
    )
    for name, make in makes.items()
}
ROUTES = {
    "permuted": route("head", partial(_whole, 2_036_010, 100, 9)),
    "split": route("head", partial(_whole, 477_010, 25, 4)),
}
