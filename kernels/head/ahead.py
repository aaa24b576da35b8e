"""The rest of a step that looks ahead, in one pass over a head A (N, H), b (N,): HNET's.

A tile's gradient of the loss, dz_0^T h_0, and its moments give what Adam would nearly make of it,
A' and b', as :func:`hypermask_fast.head.ahead.shifted` does. Of the t earlier embeddings there,
z_j = A' h_j + b', r_j = z_j - target_j, 0 where the target is NaN, and dz_j = coefficient r_j. The
pass sums dz_j A' and ||r_j||^2, and takes Adam's step of A and b with the gradients of all
embeddings. The shifted tile is only in registers.

hidden (t + 1, H), dz_0 (N,), targets (t, N) float32 or bfloat16, moments float32 or bfloat16, all
else float32; t and H up to the limits of ``row_tiles``. Products are float32 multiply-adds, but for
dz_j A', of float32's accuracy. The programs stay and take tiles of rows in turn; torch adds their
sums in float64, in order. Bytes, with 4-byte moments and targets: 24 N H + 4 t N + 28 N; A and its
moments are read twice, and found in the cache the second time.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hypermask_fast.kernels.device import cached, on_device, only_if
from hypermask_fast.kernels.head.arithmetic import exact_dot, residuals
from hypermask_fast.kernels.head.finish import finish
from hypermask_fast.kernels.head.row_tiles import (
    MOST,
    WIDEST,
    adam_tile,
    first_moments,
    plan,
    prefetch_factors,
    prefetch_weight,
    tiles,
)
from hypermask_fast.kernels.head.update import adam_update, load_scalars
from hypermask_fast.kernels.tuning import Config

CONFIGS: tuple[Config, ...] = (
    tiles(16, 32, 4, 3, 1),
    tiles(16, 32, 4, 4, 1),
    tiles(32, 32, 8, 2, 2),
)


@triton.jit
def _shifted(
    parameter_ptr,
    exp_avg_ptr,
    exp_avg_sq_ptr,
    offsets,
    grad,
    mask,
    scalars,
    AHEAD_EPS: tl.constexpr,
):
    """What Adam would nearly make of a tile: eps is not multiplied with the bias correction."""
    scale, decay, l2, lerp, beta2, square, _, step_size = scalars
    parameter = cached(parameter_ptr + offsets, mask)
    exp_avg = cached(exp_avg_ptr + offsets, mask).to(tl.float32)
    exp_avg_sq = cached(exp_avg_sq_ptr + offsets, mask).to(tl.float32)
    grad = tl.fma(l2, parameter, grad * scale)
    exp_avg = tl.fma(lerp, grad - exp_avg, exp_avg)
    exp_avg_sq = tl.fma(square * grad, grad, beta2 * exp_avg_sq)
    ratio = exp_avg / (tl.sqrt(exp_avg_sq) + AHEAD_EPS)
    return tl.where(mask, tl.fma(-step_size, ratio, parameter * decay), 0.0)


@triton.jit(do_not_specialize=["rows", "earlier", "targets_stride"])
def _step_ahead_kernel(
    weight_ptr,
    bias_ptr,
    exp_avg_ptr,
    exp_avg_sq_ptr,
    bias_exp_avg_ptr,
    bias_exp_avg_sq_ptr,
    dz_ptr,
    hidden_ptr,
    targets_ptr,
    coefficient_ptr,
    scalars_ptr,
    parts_ptr,
    squares_ptr,
    rows,
    earlier,
    targets_stride,
    AHEAD_EPS: tl.constexpr,
    WIDTH: tl.constexpr,
    CHUNKS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_H: tl.constexpr,
    AHEAD: tl.constexpr,
):
    """Tiles (BLOCK_N, CHUNKS * BLOCK_H) of A and b."""
    row = tl.arange(0, BLOCK_N)
    column = tl.arange(0, BLOCK_H)
    slot = tl.arange(0, 16)
    squares = tl.zeros((BLOCK_N,), tl.float32)
    sums = ()
    for _ in tl.static_range(CHUNKS):
        sums += (tl.zeros((16, BLOCK_H), tl.float32),)
    coefficient = tl.load(coefficient_ptr)
    taken = tl.load(scalars_ptr + 8) == 0
    program = tl.program_id(0).to(tl.int64)
    step = tl.num_programs(0) * BLOCK_N
    for start in tl.range(program * BLOCK_N, rows, step, disable_licm=True):
        first = start * WIDTH
        offsets = row[:, None] * WIDTH + column[None, :]
        valid = row < (rows - start).to(tl.int32)
        scalars = load_scalars(scalars_ptr)
        # 0 times NaN would be NaN: a step that is not taken has no gradient.
        bias_grad = tl.load(dz_ptr + start + row, mask=only_if(valid, taken), other=0.0)
        of_bias = (bias_ptr + start, bias_exp_avg_ptr + start, bias_exp_avg_sq_ptr + start, row)
        bias = _shifted(*of_bias, bias_grad, valid, scalars, AHEAD_EPS)
        h_ptr = hidden_ptr + column
        a = ()
        grad = ()
        for chunk in tl.static_range(CHUNKS):
            inside = column < WIDTH - chunk * BLOCK_H
            h = tl.load(h_ptr + chunk * BLOCK_H, mask=inside, other=0.0)
            of_loss = bias_grad[:, None] * h[None, :]
            mask = valid[:, None] & inside[None, :]
            at = offsets + chunk * BLOCK_H
            of_weight = (weight_ptr + first, exp_avg_ptr + first, exp_avg_sq_ptr + first, at)
            a += (_shifted(*of_weight, of_loss, mask, scalars, AHEAD_EPS),)
            grad += (of_loss,)
        later = start + step
        prefetch_weight(weight_ptr, bias_ptr, later, rows, WIDTH, BLOCK_N)
        prefetch_weight(exp_avg_ptr, bias_exp_avg_ptr, later, rows, WIDTH, BLOCK_N)
        prefetch_weight(exp_avg_sq_ptr, bias_exp_avg_sq_ptr, later, rows, WIDTH, BLOCK_N)
        of_factors = later, rows, earlier, targets_stride
        prefetch_factors(dz_ptr, targets_ptr, *of_factors, BLOCK_N)
        h_ptr += WIDTH
        target_ptr = targets_ptr + start + row
        target = tl.load(target_ptr, mask=only_if(valid, earlier > 0), other=0.0)
        factors = tl.zeros((BLOCK_N, 16), tl.float32)
        for j in range(earlier):
            hidden = ()
            z = tl.zeros((BLOCK_N, BLOCK_H), tl.float32)
            for chunk in tl.static_range(CHUNKS):
                inside = column < WIDTH - chunk * BLOCK_H
                h = tl.load(h_ptr + chunk * BLOCK_H, mask=inside, other=0.0)
                z = tl.fma(a[chunk], h[None, :], z)
                hidden += (h,)
            h_ptr += WIDTH
            z = tl.sum(z, 1) + bias
            wide = target.to(tl.float32)
            residual = residuals(z, target, valid & (wide == wide))
            target_ptr += targets_stride
            target = tl.load(target_ptr, mask=only_if(valid, j + 1 < earlier), other=0.0)
            squares = tl.fma(residual, residual, squares)
            dz = coefficient * residual
            bias_grad += dz
            factors = tl.where(slot[None, :] == j + 1, dz[:, None], factors)
            before = grad
            grad = ()
            for chunk in tl.static_range(CHUNKS):
                grad += (tl.fma(dz[:, None], hidden[chunk][None, :], before[chunk]),)
        of_moments = exp_avg_ptr + first, exp_avg_sq_ptr + first
        stepped = only_if(valid, taken)
        moments = first_moments(*of_moments, offsets, stepped, WIDTH, AHEAD)
        before = sums
        sums = ()
        for chunk in tl.static_range(CHUNKS):
            sums += (exact_dot(tl.trans(factors), a[chunk], before[chunk]),)
        # Again, not kept: they would fill registers through the loop.
        scalars = load_scalars(scalars_ptr)
        of_weight = weight_ptr + first, of_moments[0], of_moments[1], offsets, stepped
        adam_tile(*of_weight, grad, moments, scalars, WIDTH, CHUNKS)
        adam_update(
            *(bias_ptr + start, bias_exp_avg_ptr + start, bias_exp_avg_sq_ptr + start, row),
            *(cached(bias_ptr + start + row, valid), bias_grad, stepped, scalars),
        )
    tl.store(squares_ptr + program, tl.sum(squares, 0))
    parts_ptr += program * (earlier + 1) * WIDTH + (slot[:, None] * WIDTH + column[None, :])
    for chunk in tl.static_range(CHUNKS):
        mask = (slot <= earlier)[:, None] & (column < WIDTH - chunk * BLOCK_H)[None, :]
        tl.store(parts_ptr + chunk * BLOCK_H, sums[chunk], mask=mask)


def takes(width: int, earlier: int) -> bool:
    """Return whether the pass takes a head of this width and as many earlier embeddings."""
    return width <= WIDEST and earlier <= MOST


def step_ahead(
    weight: Tensor,
    bias: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    bias_exp_avg: Tensor,
    bias_exp_avg_sq: Tensor,
    dz_current: Tensor,
    hidden: Tensor,
    targets: Tensor,
    *,
    eps: float,
    coefficient: Tensor,
    scalars: Tensor,
    processors: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Do the rest of a step that looks ahead; A, b and their moments are updated in place.

    Args:
        weight, bias, exp_avg, exp_avg_sq, bias_exp_avg, bias_exp_avg_sq, dz_current, hidden,
            coefficient, scalars, processors: As in
            :func:`hypermask_fast.kernels.head.step.step_rows`; :func:`takes` says for which sizes.
        targets: (t, N), float32 or bfloat16, rows may be apart; NaN keeps nothing.
        eps: Adam's, which the look-ahead adds as it is.

    Returns:
        The gradient to ``hidden`` (t + 1, H) through the shifted head, 0 for the current embedding,
        and the sum of all squared residuals, 0-d float64.
    """
    (rows, width), earlier = weight.shape, len(targets)
    hidden = hidden.contiguous()
    targets = targets if targets.stride(1) == 1 else targets.contiguous()
    if not rows:
        return torch.zeros_like(hidden), weight.new_zeros((), dtype=torch.float64)
    grid, config = plan("step_ahead", CONFIGS, weight, earlier, processors)
    parts = weight.new_empty(grid[0], earlier + 1, width)
    squares = weight.new_empty(grid[0])
    with on_device(weight):
        _step_ahead_kernel[grid](
            *(weight, bias, exp_avg, exp_avg_sq, bias_exp_avg, bias_exp_avg_sq),
            *(dz_current, hidden, targets, coefficient, scalars, parts, squares),
            *(rows, earlier, targets.stride(0)),
            AHEAD_EPS=eps,
            enable_fp_fusion=False,
            **config,
        )
    return finish(parts, squares)
