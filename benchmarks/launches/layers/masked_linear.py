"""Launches of the masked linear layer: for one image, a training batch and a large one."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F

from benchmarks.launches.launch import Launch, Run, floats
from hypermask_fast.kernels.layers import linear as forward
from hypermask_fast.kernels.layers import linear_backward as backward
from hypermask_fast.kernels.masks import weights as mask_weights

FLOAT, BRAIN = torch.float32, torch.bfloat16


def _forward(
    rows: int,
    width: int,
    depth: int,
    dtype: torch.dtype = FLOAT,
    weight: torch.dtype | None = None,
    tasks: int | None = None,
    mixed: bool = False,
) -> Run:
    each = () if tasks is None else (tasks,)
    arguments = (
        floats(width, depth, dtype=weight or dtype),
        floats(width, dtype=weight or dtype),
        floats(*each, width, depth),
        floats(*each, width),
        floats(*each, positive=True),
        floats(*each, positive=True),
    )
    x = floats(rows, depth, dtype=dtype)
    if mixed:
        ids = torch.randint(tasks or 1, (rows,))
        return partial(forward.masked_linear_mixed, x, ids, *arguments)
    return partial(forward.masked_linear_forward, x, *arguments)


def _input(rows: int, width: int, depth: int, dtype: torch.dtype) -> Run:
    grad, weight = floats(rows, width, dtype=dtype), floats(width, depth, dtype=dtype)
    gate = floats(width, depth), floats(positive=True)
    return partial(forward.masked_linear_backward_input, grad, weight, *gate)


def _weight(rows: int, width: int, depth: int, dtype: torch.dtype) -> Run:
    grad, x = floats(rows, width, dtype=dtype), floats(rows, depth, dtype=dtype)
    masked = floats(width, depth, dtype=dtype), floats(width, depth), floats(positive=True)
    return partial(backward.masked_linear_backward_weight, grad, x, *masked)


def _bias(rows: int, width: int, dtype: torch.dtype) -> Run:
    grad, bias = floats(rows, width, dtype=dtype), floats(width, dtype=dtype)
    logits, threshold = floats(width), floats(positive=True)
    return partial(backward.masked_linear_backward_bias, grad, bias, logits, threshold)


def _plain_forward(rows: int, width: int, depth: int, dtype: torch.dtype) -> Run:
    x = floats(rows, depth, dtype=dtype)
    weights = [floats(width, depth, dtype=dtype), floats(width, dtype=dtype)]
    logits, thresholds = floats(width * depth + width), floats(2, positive=True)

    def run() -> object:
        (w, b), *_ = mask_weights.forward(weights, logits, thresholds, (True, True))
        assert w is not None
        return F.linear(x, w, b)

    return run


def _plain_input(rows: int, width: int, depth: int, dtype: torch.dtype) -> Run:
    grad, weight = floats(rows, width, dtype=dtype), floats(width, depth, dtype=dtype)
    return lambda: grad @ weight


def _plain_weight(rows: int, width: int, depth: int, dtype: torch.dtype) -> Run:
    grad, x = floats(rows, width, dtype=dtype), floats(rows, depth, dtype=dtype)
    weights = [floats(width, depth, dtype=dtype)]
    logits, thresholds = floats(width * depth), floats(1, positive=True)
    return lambda: mask_weights.backward(weights, logits, thresholds, [grad.t() @ x])


def _with_precision(policy: str, make: partial[Run]) -> Run:
    launch = make()

    def run() -> object:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(policy)
        try:
            return launch()
        finally:
            torch.set_float32_matmul_precision(before)

    return run


def _passes(name: str, sizes: tuple[int, int, int], dtype: torch.dtype) -> dict[str, Launch]:
    """Return the launches of a layer: forward, to its input, and to its weights."""
    bits = 32 if dtype == FLOAT else 16
    configs = forward.CONFIGS[forward._class(sizes[0], bits)]
    of_weight = backward.CONFIGS[f"{bits}bit"]
    return {
        f"{kind}_{name}_{bits}bit": Launch(
            partial(make, *sizes, dtype), kernel, shipped, partial(alternative, *sizes, dtype)
        )
        for kind, make, kernel, shipped, alternative in (
            ("forward", _forward, "masked_linear", configs, _plain_forward),
            ("input", _input, "masked_linear_input", configs, _plain_input),
            ("weight", _weight, "masked_linear_weight", of_weight, _plain_weight),
        )
    }


_DTYPES = (FLOAT, BRAIN)
_SIZES = {"rows16": (16, 4096, 4096), "rows128": (128, 1000, 784), "rows": (4096, 1024, 1000)}
LAUNCHES: dict[str, Launch] = {}
for _name, _size in _SIZES.items():
    for _dtype in _DTYPES:
        LAUNCHES |= _passes(_name, _size, _dtype)

_BATCH, _ROWS = forward.CONFIGS["rows128_32bit"], forward.CONFIGS["rows16_32bit"]
_PRODUCTS = partial(_forward, 128, 1000, 784)
_GRADIENTS = partial(_weight, 128, 1000, 784, FLOAT)
LAUNCHES |= {
    f"{name}": Launch(make, "masked_linear", configs)
    for name, make, configs in (
        ("autocast", partial(_PRODUCTS, BRAIN, FLOAT), _BATCH),
        ("tf32", partial(_with_precision, "high", _PRODUCTS), _BATCH),
        ("bfloat16_products", partial(_with_precision, "medium", _PRODUCTS), _BATCH),
        ("odd", partial(_forward, 128, 333, 777), _BATCH[:1]),
        ("tasks", partial(_PRODUCTS, tasks=10), _BATCH),
        ("mixed", partial(_PRODUCTS, tasks=10, mixed=True), _ROWS),
        ("mixed_of_one", partial(_PRODUCTS, tasks=1, mixed=True), _ROWS[:1]),
    )
}
LAUNCHES |= {
    "weight_tf32": Launch(
        partial(_with_precision, "high", _GRADIENTS),
        "masked_linear_weight",
        backward.CONFIGS["32bit"],
    ),
    "bias": Launch(partial(_bias, 1024, 1000, FLOAT), "masked_linear_bias", ({},)),
    "bias_16bit": Launch(partial(_bias, 128, 1000, BRAIN), "masked_linear_bias", ({},)),
}

GRID: dict[str, Launch] = {}
for _width in (256, 1024, 4096):
    for _rows in (1, 8, 32, 128, 1024, 4096):
        for _dtype in _DTYPES:
            GRID |= _passes(f"{_rows}x{_width}", (_rows, _width, _width), _dtype)
