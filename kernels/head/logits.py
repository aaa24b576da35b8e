"""Logits of task embeddings, z = A h + b, in one read of A; and their residuals.

A (N, H), b (N,), hidden (k, H), z (k, N), all float32.

* One embedding: float32 multiply-adds, a tree sum along H. Bytes: 4 N H + 8 N.
* Up to 128 embeddings: a product on the matrix cores, of float32's accuracy. 4 N H + 4 k N + 4 N.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from hypermask_fast.kernels.device import cast, fit, on_device, only_if
from hypermask_fast.kernels.head.arithmetic import exact_dot, residuals
from hypermask_fast.kernels.tuning import Config, choose


def tile(rows: int, columns: int, warps: int, stages: int = 3) -> Config:
    """Return a configuration by its sizes."""
    return {"BLOCK_N": rows, "BLOCK_H": columns, "num_warps": warps, "num_stages": stages}


CONFIGS: dict[str, tuple[Config, ...]] = {
    "vector": (
        tile(64, 32, 4),
        tile(128, 32, 4),
        tile(64, 64, 4),
        tile(32, 128, 4),
        tile(64, 128, 8),
    ),
    "matrix16": (tile(64, 32, 4), tile(128, 32, 4), tile(64, 64, 8)),
    "matrix128": (tile(64, 32, 8), tile(32, 32, 4), tile(64, 32, 8, 2)),
}
"""By kernel, and the most embeddings at once."""

_EMBEDDINGS = 128


@triton.jit
def _mask_logits_vector_kernel(
    weight_ptr,
    bias_ptr,
    hidden_ptr,
    out_ptr,
    rows,
    WIDTH: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """z (BLOCK_N,) = A h + b."""
    start = tl.program_id(0).to(tl.int64) * BLOCK_N
    row = tl.arange(0, BLOCK_N)
    valid = row < rows - start
    column = tl.arange(0, BLOCK_H)
    tile_ptr = weight_ptr + start * WIDTH + (row[:, None] * WIDTH + column[None, :])
    sums = tl.zeros((BLOCK_N, BLOCK_H), tl.float32)
    for first in tl.range(0, WIDTH, BLOCK_H, loop_unroll_factor=4):
        inside = column < WIDTH - first
        a = tl.load(tile_ptr + first, mask=valid[:, None] & inside[None, :], other=0.0)
        h = tl.load(hidden_ptr + first + column, mask=inside, other=0.0)
        sums = tl.fma(a, h[None, :], sums)
    z = tl.sum(sums, 1) + tl.load(bias_ptr + start + row, mask=valid, other=0.0)
    tl.store(out_ptr + start + row, z, mask=valid)


@triton.jit
def _mask_logits_matrix_kernel(
    weight_ptr,
    bias_ptr,
    hidden_ptr,
    targets_ptr,
    current_ptr,
    coefficient_ptr,
    scalars_ptr,
    out_ptr,
    squares_ptr,
    rows,
    count,
    targets_stride,
    out_stride,
    WIDTH: tl.constexpr,
    SKIPPED: tl.constexpr,
    RESIDUALS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """z (BLOCK_N, BLOCK_K) = A hidden^T + b; its first SKIPPED columns are of no embedding.

    RESIDUALS: the output is instead [dz_0, coefficient (z - targets)], as in ``step_rows``.
    """
    start = tl.program_id(0).to(tl.int64) * BLOCK_N
    row = tl.arange(0, BLOCK_N)
    column = tl.arange(0, BLOCK_H)
    slot = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    valid = row < rows - start
    used = (slot >= SKIPPED) & (slot < count + SKIPPED)
    tile_ptr = weight_ptr + start * WIDTH + (row[:, None] * WIDTH + column[None, :])
    hidden_ptr += (slot - SKIPPED)[None, :] * WIDTH + column[:, None]
    z = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    for first in range(0, WIDTH, BLOCK_H):
        inside = column < WIDTH - first
        a = tl.load(tile_ptr + first, mask=valid[:, None] & inside[None, :], other=0.0)
        h = tl.load(hidden_ptr + first, mask=inside[:, None] & used[None, :], other=0.0)
        z = exact_dot(a, h, z)
    z += tl.load(bias_ptr + start + row, mask=valid, other=0.0)[:, None]
    whole = valid[:, None] & used[None, :]
    if RESIDUALS:
        live = whole & (slot >= 1)[None, :]
        at = targets_ptr + start + (slot - 1)[None, :].to(tl.int64) * targets_stride + row[:, None]
        residual = residuals(z, tl.load(at, mask=live, other=0.0), live)
        squares = tl.sum(tl.sum(residual * residual, 1), 0)
        tl.store(squares_ptr + tl.program_id(0) * tl.num_programs(1) + tl.program_id(1), squares)
        # 0 times NaN would be NaN: a step that is not taken has no gradient.
        taken = tl.load(scalars_ptr + 8) == 0
        dz = tl.load(current_ptr + start + row, mask=only_if(valid, taken), other=0.0)
        z = tl.where((slot == 0)[None, :], dz[:, None], tl.load(coefficient_ptr) * residual)
    out_ptr += start + (slot - SKIPPED)[None, :].to(tl.int64) * out_stride + row[:, None]
    tl.store(out_ptr, cast(z, out_ptr.dtype.element_ty), mask=whole)


def plan(
    kernel: str, configs: Mapping[str, Sequence[Config]], weight: Tensor, count: int
) -> tuple[int, Config]:
    """Return how many embeddings a program takes, and the launch's other constants.

    Args:
        kernel: Its name in the table of configurations, with {} for the key of ``configs``.
        configs: As :data:`CONFIGS`.
        weight: A (N, H).
        count: Of embeddings.
    """
    rows, width = weight.shape
    name = "vector" if count == 1 else "matrix16" if count <= 16 else "matrix128"
    sizes = {"rows": rows, "width": width, "count": count}
    config = choose(kernel.format(name), configs[name], weight.device, **sizes)
    block = 1 if count == 1 else fit(_EMBEDDINGS, count)
    return block, {**config, "BLOCK_H": fit(config["BLOCK_H"], width), "WIDTH": width}


def _plan(weight: Tensor, count: int) -> tuple[int, Config]:
    return plan("mask_logits_{}", CONFIGS, weight, count)


def _launch_matrix(
    weight: Tensor,
    bias: Tensor,
    hidden: Tensor,
    out: Tensor,
    skipped: int = 0,
    *,
    targets: Tensor | None = None,
    current: Tensor | None = None,
    coefficient: Tensor | None = None,
    scalars: Tensor | None = None,
) -> Tensor | None:
    """Fill ``out``; return the sums of squares of the residuals, where there are targets."""
    rows, count = len(weight), len(hidden)
    block, config = _plan(weight, max(2, count + skipped))
    grid = (triton.cdiv(rows, config["BLOCK_N"]), triton.cdiv(count + skipped, block))
    squares = None if targets is None else weight.new_empty(grid)
    with on_device(weight):
        _mask_logits_matrix_kernel[grid](
            *(weight.contiguous(), bias.contiguous(), hidden.contiguous()),
            *(targets, current, coefficient, scalars, out, squares),
            *(rows, count, 0 if targets is None else targets.stride(0), out.stride(0)),
            SKIPPED=skipped,
            RESIDUALS=targets is not None,
            BLOCK_K=block,
            **config,
        )
    return squares


def residual_factors(
    weight: Tensor,
    bias: Tensor,
    dz_current: Tensor,
    hidden: Tensor,
    targets: Tensor,
    *,
    coefficient: Tensor,
    scalars: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return the gradients to all logits: the current ones', and those of the regularizer.

    Args:
        weight: A (N, H).
        bias: b (N,).
        dz_current: (N,), contiguous; taken as 0 if the step is skipped.
        hidden: (t + 1, H), the current embedding's first.
        targets: (t, N), float32 or bfloat16; of :func:`target_logits`. t is at least 1.
        coefficient: One number, float32.
        scalars: Of :func:`~hypermask_fast.kernels.head.adam.adam_scalars`.

    Returns:
        dz (t + 1, N), and the sum of the squares of ``hidden[1:] A^T + b - targets``, 0-d float64.
    """
    dz = weight.new_empty(len(hidden), len(weight))
    squares = _launch_matrix(
        *(weight, bias, hidden, dz),
        targets=targets,
        current=dz_current,
        coefficient=coefficient,
        scalars=scalars,
    )
    assert squares is not None
    return dz, squares.sum(dtype=torch.float64)


def target_logits(weight: Tensor, bias: Tensor, hidden: Tensor, out: Tensor) -> Tensor:
    """Fill ``out`` with the logits that :func:`residual_factors` forms with ``hidden`` as its last.

    Args:
        weight: A (N, H).
        bias: b (N,).
        hidden: (t, H), of the earlier embeddings.
        out: (t, N), float32 or bfloat16.

    Returns:
        ``out``.
    """
    _launch_matrix(weight, bias, hidden, out, skipped=1)
    return out


def mask_logits(weight: Tensor, bias: Tensor, hidden: Tensor, out: Tensor | None = None) -> Tensor:
    """Return the logits of task embeddings, hidden A^T + b.

    Args:
        weight: A (N, H).
        bias: b (N,).
        hidden: (k, H), the trunk's outputs.
        out: (k, N), to be filled and returned; rows may be apart.

    Returns:
        (k, N).
    """
    rows, count = len(weight), len(hidden)
    out = weight.new_empty(count, rows) if out is None else out
    if not out.numel():
        return out
    if count == 1:
        _, config = _plan(weight, 1)
        with on_device(weight):
            _mask_logits_vector_kernel[(triton.cdiv(rows, config["BLOCK_N"]),)](
                *(weight.contiguous(), bias.contiguous(), hidden.contiguous(), out, rows),
                **config,
            )
    else:
        _launch_matrix(weight, bias, hidden, out)
    return out
