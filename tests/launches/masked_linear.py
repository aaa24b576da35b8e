"""Launches of the masked linear layer: for one image, a training batch and a large one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from hypermask_fast.kernels import masked_linear as forward
from hypermask_fast.kernels import masked_linear_backward as backward
from hypermask_fast.kernels._tuning import Config


def _tensor(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, device="cuda", dtype=dtype)


def _forward(rows: int, width: int, depth: int, dtype: torch.dtype, weight: torch.dtype) -> None:
    forward.masked_linear_forward(
        _tensor(rows, depth, dtype=dtype),
        _tensor(width, depth, dtype=weight),
        _tensor(width, dtype=weight),
        _tensor(width, depth),
        _tensor(width),
        _tensor(),
        _tensor(),
    )


def _tasks(rows: int, width: int, depth: int, tasks: int, mixed: bool) -> None:
    x = _tensor(rows, depth)
    weight, bias = _tensor(width, depth), _tensor(width)
    masks = (_tensor(tasks, width, depth), _tensor(tasks, width), _tensor(tasks), _tensor(tasks))
    if mixed:
        ids = torch.empty(rows, device="cuda", dtype=torch.int64)
        forward.masked_linear_mixed(x, ids, weight, bias, *masks)
    else:
        forward.masked_linear_forward(x, weight, bias, *masks)


def _input(rows: int, width: int, depth: int, dtype: torch.dtype) -> None:
    forward.masked_linear_backward_input(
        _tensor(rows, width, dtype=dtype),
        _tensor(width, depth, dtype=dtype),
        _tensor(width, depth),
        _tensor(),
    )


def _weight(rows: int, width: int, depth: int, dtype: torch.dtype, weight: torch.dtype) -> None:
    backward.masked_linear_backward_weight(
        _tensor(rows, width, dtype=dtype),
        _tensor(rows, depth, dtype=dtype),
        _tensor(width, depth, dtype=weight),
        _tensor(width, depth),
        _tensor(),
    )


def _bias() -> None:
    grad, bias = _tensor(4096, 1000, dtype=torch.bfloat16), _tensor(1000, dtype=torch.bfloat16)
    backward.masked_linear_backward_bias(grad, bias, _tensor(1000), _tensor())


def _high(launch: Callable[[], None]) -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        launch()
    finally:
        torch.set_float32_matmul_precision(before)


def _launches() -> dict[str, tuple[Callable[[], None], str, Sequence[Config]]]:
    found: dict[str, tuple[Callable[[], None], str, Sequence[Config]]] = {}
    float32, bfloat16 = torch.float32, torch.bfloat16
    # Rows of 1000 elements are no multiple of 16, and rows of 784 are.
    for rows, width, depth, name in (
        (16, 4096, 4096, "rows16"),
        (128, 1000, 784, "rows128"),
        (4096, 1024, 1000, "rows"),
    ):
        for bits, dtype in ((32, float32), (16, bfloat16)):
            size = (rows, width, depth, dtype)
            configs = forward.CONFIGS[f"{name}_{bits}bit"]
            found[f"forward_{name}_{bits}"] = (
                partial(_forward, *size, dtype),
                "masked_linear",
                configs,
            )
            found[f"input_{name}_{bits}"] = (
                partial(_input, *size),
                "masked_linear_input",
                configs,
            )
            found[f"weight_{name}_{bits}"] = (
                partial(_weight, *size, dtype),
                "masked_linear_weight",
                backward.CONFIGS[f"{bits}bit"],
            )
    return found


LAUNCHES = _launches()
