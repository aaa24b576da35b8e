"""Logits and their gradients of the head for Permuted MNIST, Split MNIST and a wide trunk."""

from __future__ import annotations

from functools import partial

import torch

from benchmarks.launches.head.factored_adam import tenth_step
from benchmarks.launches.launch import Launch, Run, floats
from hypermask_fast.kernels.head import hidden_grad
from hypermask_fast.kernels.head.logits import (
    CONFIGS,
    mask_logits,
    residual_factors,
    target_logits,
)


def _logits(rows: int, width: int, count: int) -> Run:
    return partial(mask_logits, floats(rows, width), floats(rows), floats(count, width))


def _grad(rows: int, width: int, count: int) -> Run:
    return partial(hidden_grad.hidden_grad, floats(rows, width), floats(count, rows))


def _residuals(rows: int, width: int, earlier: int, dtype: torch.dtype = torch.float32) -> Run:
    return partial(
        residual_factors,
        floats(rows, width),
        floats(rows),
        floats(rows),
        floats(earlier + 1, width),
        floats(earlier, rows, dtype=dtype),
        coefficient=floats(1),
        scalars=tenth_step(),
    )


def _targets(rows: int, width: int, earlier: int) -> Run:
    head = floats(rows, width), floats(rows), floats(earlier, width)
    return partial(target_logits, *head, floats(earlier, rows))


_SIZES = {
    "permuted": (2_036_010, 100, 1),
    "permuted-10": (2_036_010, 100, 10),
    "permuted-100": (2_036_010, 100, 100),
    "split": (477_010, 25, 1),
    "split-5": (477_010, 25, 5),
    "wide": (1_000_000, 1000, 1),
    "wide-20": (1_000_000, 1000, 20),
}
LAUNCHES: dict[str, Launch] = {}
for _name, _size in _SIZES.items():
    _kind = "vector" if _size[2] == 1 else "matrix16" if _size[2] <= 16 else "matrix128"
    LAUNCHES[_name] = Launch(partial(_logits, *_size), f"mask_logits_{_kind}", CONFIGS[_kind])
    LAUNCHES[f"{_name}-grad"] = Launch(
        partial(_grad, *_size), f"mask_logits_{_kind}_grad", hidden_grad.CONFIGS[_kind]
    )
_MANY = ("mask_logits_matrix128", CONFIGS["matrix128"])
_PERMUTED = (2_036_010, 100, 99)
LAUNCHES |= {
    "permuted-99-residuals": Launch(partial(_residuals, *_PERMUTED), *_MANY),
    "permuted-99-residuals-bf16": Launch(partial(_residuals, *_PERMUTED, torch.bfloat16), *_MANY),
    "permuted-99-targets": Launch(partial(_targets, *_PERMUTED), *_MANY),
    "wide-9-residuals": Launch(
        partial(_residuals, 1_000_000, 1000, 9), "mask_logits_matrix16", CONFIGS["matrix16"]
    ),
}
