"""Runs the masked convolution's kernels and their reference, for the tests of both files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
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

from hypermask_fast.kernels.layers import conv2d as forward
from hypermask_fast.kernels.layers import conv2d_backward as backward

KERNELS = ("masked_conv2d", "masked_conv2d_input", "masked_conv2d_weight")

by_autograd = partial(gradients_of, reference.masked_conv2d)
bounds = partial(bounds_of, reference.masked_conv2d)
every = partial(all_forced, kernels=KERNELS)


@contextmanager
def full_precision() -> Iterator[None]:
    """Have float32 convolutions multiply float32, where PyTorch would let cuDNN round to tf32."""
    conv = torch.backends.cudnn.conv
    before = conv.fp32_precision
    conv.fp32_precision = "ieee"
    try:
        yield
    finally:
        conv.fp32_precision = before


def channels_last(tensor: Tensor) -> Tensor:
    return tensor.to(memory_format=torch.channels_last)


def some_layer(
    *shapes_and_dtypes: Any, last: bool = False, device: torch.device, **options: Any
) -> Layer:
    """A layer of the shapes of x and W; ``last``: both are in channels-last format."""
    layer = layer_of_shapes(*shapes_and_dtypes, device=device, **options)
    if last:
        return layer._replace(x=channels_last(layer.x), weight=channels_last(layer.weight))
    return layer


def some_gradient(layer: Layer, **options: Any) -> Tensor:
    y = reference.masked_conv2d(*double(layer), **options)
    return torch.randn_like(y).to(layer.x.dtype)


def by_kernels(layer: Layer, grad: Tensor, **options: Any) -> list[Tensor | None]:
    x, weight, bias, z, zb, q, qb = layer
    last = x.stride(1) == 1
    with poisoned():
        y = forward.masked_conv2d_forward(*layer, **options)
        dx = forward.masked_conv2d_backward_input(
            grad, weight, z, q, x.shape, **options, channels_last=last
        )
        dw, dz = backward.masked_conv2d_backward_weight(grad, x, weight, z, q, **options)
        db = dzb = None
        if bias is not None:
            db, dzb = backward.masked_conv2d_backward_bias(grad, bias, zb, qb)
    return [y, dx, dw, db, dz, dzb]


def assert_sums_as_exact(found: Tensor, exact: Tensor, grad: Tensor, layer: Layer) -> None:
    """Check the gradients of a bias: too few numbers to compare the errors of two orders.

    In a tree of at most 2^8 terms the rounding errors are 8 halves of epsilon of the magnitudes,
    where epsilon is that of the coarsest dtype.
    """
    epsilon = max(torch.finfo(t.dtype).eps for t in layer if t is not None)
    largest = grad.double().abs().sum((0, 2, 3)).max() * max(1, layer.bias.abs().max())
    bound = 4 * epsilon * float(largest)
    torch.testing.assert_close(found.double(), exact.double(), rtol=0, atol=bound)


def check(layer: Layer, grad: Tensor | None = None, **options: Any) -> None:
    grad = some_gradient(layer, **options) if grad is None else grad
    found = by_kernels(layer, grad, **options)
    plain = by_autograd(layer, grad, **options)
    exact = by_autograd(double(layer), grad.double(), **options)
    sums = [mine is found[3] or mine is found[5] for mine in found]
    allowed = bounds(layer, grad, **options)
    for mine, theirs, right, is_sum, bound in zip(found, plain, exact, sums, allowed, strict=True):
        assert (mine is None) == (right is None), "a gradient that is missing, or of nothing"
        if mine is not None and is_sum:
            assert mine.dtype == theirs.dtype, f"dtype {mine.dtype}, expected {theirs.dtype}"
            assert_sums_as_exact(mine, right, grad, layer)
        elif mine is not None:
            assert_as_exact(mine, right, bound, theirs.dtype)
