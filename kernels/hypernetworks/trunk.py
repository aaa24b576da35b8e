"""A layer of a hypernetwork's trunk in one launch a direction: rows, product, bias, activation.

    forward     y = f(x W^T + b)
    backward    a = g f'(y),   dx = a W,   dW = a^T x,   db = sum of a over the rows

x (k, D) are rows, or those of a table that ids (k,) name; then dx is the gradient of the table, 0
in the other rows. W is (H, D), all is float32, and f is ELU, ReLU or tanh, whose slope y tells.
Rows are few and tables small: a program forms a row's sums, in an order that the sizes decide, and
reads W from the cache.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hypermask_fast.kernels.device import abs_tanh, on_device, only_if, sign

ACTIVATIONS = ("elu", "relu", "tanh")
_BLOCK_H, _BLOCK_D = 32, 64


@triton.jit
def _activated(x, ACTIVATION: tl.constexpr):
    if ACTIVATION == "relu":
        return tl.where(x < 0, 0.0, x)
    elif ACTIVATION == "tanh":
        return sign(x) * abs_tanh(x)
    else:
        # exp(x) - 1 by its series where a difference would cancel.
        s = 1 + x / 8
        s = 1 + x / 7 * s
        s = 1 + x / 6 * s
        s = 1 + x / 5 * s
        s = 1 + x / 4 * s
        s = 1 + x / 3 * s
        s = 1 + x / 2 * s
        below = tl.where(x > -0.3, x * s, tl.exp(tl.minimum(x, 0.0)) - 1)
        return tl.where(x <= 0, below, x)


@triton.jit
def _slope(y, ACTIVATION: tl.constexpr):
    """The activation's slope, where it gave y."""
    if ACTIVATION == "relu":
        return tl.where(y > 0, 1.0, 0.0)
    elif ACTIVATION == "tanh":
        return 1 - y * y
    else:
        return tl.where(y > 0, 1.0, y + 1)


@triton.jit
def _row_of(ids_ptr, row, capacity):
    """The row of a table that an id names, and whether there is one."""
    if ids_ptr is None:
        return tl.full((), 0, tl.int64) + row, row >= 0
    else:
        named = tl.load(ids_ptr + row).to(tl.int64)
        return named, (named >= 0) & (named < capacity)


@triton.jit(do_not_specialize=["capacity"])
def _trunk_forward_kernel(
    x_ptr,
    ids_ptr,
    weight_ptr,
    bias_ptr,
    y_ptr,
    capacity,
    WIDTH_IN: tl.constexpr,
    WIDTH_OUT: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Columns (BLOCK_H,) of a row; NaN for an id that the table has no row for."""
    row = tl.program_id(0)
    source, there = _row_of(ids_ptr, row, capacity)
    out = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    column = tl.arange(0, BLOCK_D)
    sums = tl.zeros((BLOCK_H, BLOCK_D), tl.float32)
    for first in range(0, WIDTH_IN, BLOCK_D):
        inside = first + column < WIDTH_IN
        x = tl.load(
            x_ptr + source * WIDTH_IN + first + column, mask=only_if(inside, there), other=0.0
        )
        mask = (out < WIDTH_OUT)[:, None] & inside[None, :]
        at = out[:, None] * WIDTH_IN + first + column[None, :]
        sums = tl.fma(tl.load(weight_ptr + at, mask=mask, other=0.0), x[None, :], sums)
    z = tl.sum(sums, 1) + tl.load(bias_ptr + out, mask=out < WIDTH_OUT, other=0.0)
    y = tl.where(there, _activated(z, ACTIVATION), float("nan"))
    tl.store(y_ptr + row.to(tl.int64) * WIDTH_OUT + out, y, mask=out < WIDTH_OUT)


@triton.jit
def _of_preactivation(grad_ptr, y_ptr, row, at, mask, WIDTH, ACTIVATION: tl.constexpr):
    place = (tl.full((), 0, tl.int64) + row) * WIDTH + at
    y = tl.load(y_ptr + place, mask=mask, other=0.0)
    return tl.load(grad_ptr + place, mask=mask, other=0.0) * _slope(y, ACTIVATION)


@triton.jit(do_not_specialize=["rows", "capacity", "rows_of_grad"])
def _trunk_backward_kernel(
    x_ptr,
    ids_ptr,
    weight_ptr,
    y_ptr,
    grad_ptr,
    x_grad_ptr,
    weight_grad_ptr,
    bias_grad_ptr,
    rows,
    capacity,
    rows_of_grad,
    WIDTH_IN: tl.constexpr,
    WIDTH_OUT: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Columns (BLOCK_D,) of a row of dx; or of BLOCK_H rows of dW, the first ones with db."""
    program = tl.program_id(0)
    column = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = column < WIDTH_IN
    out = tl.arange(0, BLOCK_H)
    if program < rows_of_grad:
        first_row, end = program, program + 1
        if ids_ptr is not None:
            first_row, end = program * 0, rows
        sums = tl.zeros((BLOCK_H, BLOCK_D), tl.float32)
        for row in range(first_row, end):
            source, _ = _row_of(ids_ptr, row, capacity)
            if source == program:
                for first in range(0, WIDTH_OUT, BLOCK_H):
                    at = first + out
                    mask = at < WIDTH_OUT
                    a = _of_preactivation(grad_ptr, y_ptr, row, at, mask, WIDTH_OUT, ACTIVATION)
                    both = mask[:, None] & inside[None, :]
                    weight_at = at[:, None] * WIDTH_IN + column[None, :]
                    weight = tl.load(weight_ptr + weight_at, mask=both, other=0.0)
                    sums = tl.fma(a[:, None], weight, sums)
        place = program.to(tl.int64) * WIDTH_IN + column
        tl.store(x_grad_ptr + place, tl.sum(sums, 0), mask=inside)
    else:
        at = (program - rows_of_grad) * BLOCK_H + out
        mask = at < WIDTH_OUT
        sums = tl.zeros((BLOCK_H, BLOCK_D), tl.float32)
        bias_sums = tl.zeros((BLOCK_H,), tl.float32)
        for row in range(0, rows):
            source, there = _row_of(ids_ptr, row, capacity)
            x = tl.load(x_ptr + source * WIDTH_IN + column, mask=only_if(inside, there), other=0.0)
            a = _of_preactivation(grad_ptr, y_ptr, row, at, mask, WIDTH_OUT, ACTIVATION)
            sums = tl.fma(a[:, None], x[None, :], sums)
            bias_sums += a
        both = mask[:, None] & inside[None, :]
        tl.store(weight_grad_ptr + at[:, None] * WIDTH_IN + column[None, :], sums, mask=both)
        if tl.program_id(1) == 0:
            tl.store(bias_grad_ptr + at, bias_sums, mask=mask)


def forward(x: Tensor, ids: Tensor | None, weight: Tensor, bias: Tensor, activation: str) -> Tensor:
    """Return a layer's outputs, (k, H).

    Args:
        x: (k, D), or a table whose rows ``ids`` names, contiguous like all.
        ids: int64 or int32 (k,); None for all rows of x.
        weight, bias: W (H, D) and b (H,).
        activation: One of :data:`ACTIVATIONS`.
    """
    rows, (width, source) = len(x) if ids is None else len(ids), weight.shape
    y = x.new_empty(rows, width)
    with on_device(x):
        _trunk_forward_kernel[(rows, triton.cdiv(width, _BLOCK_H))](
            *(x, ids, weight, bias, y, len(x)),
            WIDTH_IN=source,
            WIDTH_OUT=width,
            ACTIVATION=activation,
            BLOCK_H=_BLOCK_H,
            BLOCK_D=_BLOCK_D,
            num_warps=4,
        )
    return y


def backward(
    x: Tensor,
    ids: Tensor | None,
    weight: Tensor,
    y: Tensor,
    grad: Tensor,
    activation: str,
    of_x: bool = True,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Return the gradients of x (or of the table that it is), W and b.

    Args:
        x, ids, weight, activation: As of :func:`forward`.
        y: What it returned.
        grad: The gradient of y, contiguous.
        of_x: Whether that of x is wanted; else it is None. Default True.
    """
    rows, (width, source) = len(y), weight.shape
    x_grad = torch.empty_like(x) if of_x else None
    weight_grad, bias_grad = torch.empty_like(weight), weight.new_empty(width)
    of_grad = len(x) if of_x else 0
    grid = (of_grad + triton.cdiv(width, _BLOCK_H), triton.cdiv(source, _BLOCK_D))
    with on_device(x):
        _trunk_backward_kernel[grid](
            *(x, ids, weight, y, grad, x_grad, weight_grad, bias_grad),
            *(rows, len(x), of_grad),
            WIDTH_IN=source,
            WIDTH_OUT=width,
            ACTIVATION=activation,
            BLOCK_H=_BLOCK_H,
            BLOCK_D=_BLOCK_D,
            num_warps=4,
        )
    return x_grad, weight_grad, bias_grad
