"""Launches of the masked linear layer: for one image, a training batch and a large one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from hypermask_fast.kernels import masked_linear as forward
from hypermask_fast.kernels import masked_linear_backward as backward
from hypermask_fast.kernels._tuning import Config

FLOAT, BRAIN = torch.float32, torch.bfloat16
_Launch = tuple[Callable[[], None], str, Sequence[Config]]


def _tensor(*shape: int, dtype: torch.dtype = FLOAT) -> Tensor:
    return torch.empty(shape, device="cuda", dtype=dtype)


def _forward(
    rows: int,
    width: int,
    depth: int,
    dtype: torch.dtype = FLOAT,
    weight: torch.dtype | None = None,
    tasks: int | None = None,
    mixed: bool = False,
) -> None:
    each = () if tasks is None else (tasks,)
    arguments = (
        _tensor(width, depth, dtype=weight or dtype),
        _tensor(width, dtype=weight or dtype),
        _tensor(*each, width, depth),
        _tensor(*each, width),
        _tensor(*each),
        _tensor(*each),
    )
    x = _tensor(rows, depth, dtype=dtype)
    if mixed:
        ids = _tensor(rows, dtype=torch.int64)
        forward.masked_linear_mixed(x, ids, *arguments)
    else:
        forward.masked_linear_forward(x, *arguments)


def _input(rows: int, width: int, depth: int, dtype: torch.dtype) -> None:
    forward.masked_linear_backward_input(
        _tensor(rows, width, dtype=dtype),
        _tensor(width, depth, dtype=dtype),
        _tensor(width, depth),
        _tensor(),
    )


def _gradients(rows: int, width: int, depth: int, dtype: torch.dtype) -> None:
    grad = _tensor(rows, width, dtype=dtype)
    weight, bias = _tensor(width, depth, dtype=dtype), _tensor(width, dtype=dtype)
    x, z = _tensor(rows, depth, dtype=dtype), _tensor(width, depth)
    backward.masked_linear_backward_weight(grad, x, weight, z, _tensor())
    backward.masked_linear_backward_bias(grad, bias, _tensor(width), _tensor())


def _with_precision(policy: str, launch: Callable[[], None]) -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(policy)
    try:
        launch()
    finally:
        torch.set_float32_matmul_precision(before)


def _launches() -> dict[str, _Launch]:
    found: dict[str, _Launch] = {}
    for kind, sizes in (
        ("rows16", (16, 4096, 4096)),
        ("rows128", (128, 1000, 784)),
        ("rows", (4096, 1024, 1000)),
    ):
        for bits, dtype in (("32bit", FLOAT), ("16bit", BRAIN)):
            configs = forward.CONFIGS[f"{kind}_{bits}"]
            found |= {
                f"forward_{kind}_{bits}": (
                    partial(_forward, *sizes, dtype),
                    "masked_linear",
                    configs,
                ),
                f"input_{kind}_{bits}": (
                    partial(_input, *sizes, dtype),
                    "masked_linear_input",
                    configs,
                ),
            }
            if kind != "rows16":
                found[f"gradients_{kind}_{bits}"] = (
                    partial(_gradients, *sizes, dtype),
                    "masked_linear_weight",
                    backward.CONFIGS[bits],
                )
    batch, rows = forward.CONFIGS["rows128_32bit"], forward.CONFIGS["rows16_32bit"]
    products = partial(_forward, 128, 1000, 784)
    gradients = partial(_gradients, 128, 1000, 784, FLOAT)
    return found | {
        "autocast": (partial(products, BRAIN, FLOAT), "masked_linear", batch),
        "tf32": (partial(_with_precision, "high", products), "masked_linear", batch),
        "bfloat16_products": (partial(_with_precision, "medium", products), "masked_linear", batch),
        "gradients_tf32": (
            partial(_with_precision, "high", gradients),
            "masked_linear_weight",
            backward.CONFIGS["32bit"],
        ),
        "odd": (partial(_forward, 128, 333, 777), "masked_linear", batch[:1]),
        "tasks": (partial(products, tasks=10), "masked_linear", batch),
        "mixed": (partial(products, tasks=10, mixed=True), "masked_linear", rows),
        "mixed_of_one": (partial(products, tasks=1, mixed=True), "masked_linear", rows[:1]),
    }


LAUNCHES = _launches()
