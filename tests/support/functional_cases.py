"""Calls of the public functions."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hypermask_fast import functional

VARIABLE = "HYPERMASK_FAST_BACKEND"

GENERATOR = torch.Generator().manual_seed(0)
X, W, B, ZB, IMAGE, KERNEL = (
    torch.randn(shape, generator=GENERATOR)
    for shape in ((2, 3), (4, 3), (4,), (4,), (2, 3, 6, 6), (4, 3, 2, 2))
)
CUT = torch.tensor(0.3)

OPERATIONS: list[tuple[str, Callable[[str | None], Tensor | None]]] = [
    ("semi_binary_mask", lambda name: functional.semi_binary_mask(W, 30, backend=name)),
    ("mask_threshold", lambda name: functional.mask_threshold(W, 30, backend=name)),
    ("masked_linear", lambda name: functional.masked_linear(X, W, B, W, B, CUT, backend=name)),
    (
        "masked_conv2d",
        lambda name: functional.masked_conv2d(IMAGE, KERNEL, B, KERNEL, B, CUT, backend=name),
    ),
]
each_operation = pytest.mark.parametrize(
    ("op", "call"), [pytest.param(op, call, id=op) for op, call in OPERATIONS]
)
