"""Runs the masked linear kernels and their reference, for the tests of both files."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from hypermask_fast import reference
from tests.support.kernel_checks import assert_as_exact, poisoned
from tests.support.masked_op_checks import (
    Layer,
    all_forced,
    bounds_of,
    double,
    gradients_of,
    layer_of_shapes,
)

pytest.importorskip("triton")

from hypermask_fast.kernels.layers import linear as forward
from hypermask_fast.kernels.layers import linear_backward as backward

by_autograd = partial(gradients_of, reference.masked_linear)
bounds = partial(bounds_of, reference.masked_linear)
every = partial(all_forced, kernels=("masked_linear", "masked_linear_input"))


def some_layer(
    sizes: tuple[int, int, int], *dtypes: torch.dtype, device: torch.device, **options: Any
) -> Layer:
    rows, width, depth = sizes
    return layer_of_shapes((rows, depth), (width, depth), *dtypes, device=device, **options)


def by_kernels(layer: Layer, grad: Tensor) -> list[Tensor | None]:
    x, weight, bias, z, zb, q, qb = layer
    with poisoned():
        y = forward.masked_linear_forward(*layer)
        dx = forward.masked_linear_backward_input(grad, weight, z, q)
        dw, dz = backward.masked_linear_backward_weight(grad, x, weight, z, q)
        db = dzb = None
        if bias is not None:
            db, dzb = backward.masked_linear_backward_bias(grad, bias, zb, qb)
    return [y, dx, dw, db, dz, dzb]


def check(layer: Layer, grad: Tensor) -> None:
    found = by_kernels(layer, grad)
    plain, exact = by_autograd(layer, grad), by_autograd(double(layer), grad.double())
    for mine, theirs, right, bound in zip(found, plain, exact, bounds(layer, grad), strict=True):
        assert (mine is None) == (right is None)
        if mine is not None:
            assert_as_exact(mine, right, bound, theirs.dtype)
