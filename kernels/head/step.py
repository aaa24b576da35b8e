"""The rest of a training step in one pass over a head A (N, H), b (N,), after the task's backward.

For the t earlier embeddings, z_j = A h_j + b, r_j = z_j - target_j and dz_j = coefficient r_j. With
dz_0 of the current embedding: dhidden = dz A with A as it was, sum_j ||r_j||^2, and Adam on A and b
from the gradients dz^T hidden and sum_j dz_j. hidden (t + 1, H), dz_0 (N,), targets (t, N) float32
or bfloat16, moments float32 or bfloat16, all else float32. Bytes, with 4-byte moments and targets:

* One pass, for t < 16 and H <= 256: 24 N H + 4 t N + 28 N. Logits and the gradients of A and b are
  float32 multiply-adds, dhidden a product of float32's accuracy. The programs stay and take tiles
  of rows in turn, so that there are few partial sums; torch adds them in float64, in order. While
  they compute, the next tile comes into L2. Widths of :mod:`.step_runs` are of products there.
* Two passes of products, for more and H <= 128: ``step_rows_products`` and ``factored_adam``.
  28 N H + 12 t N + 40 N.
* Else three passes, for [dz_0, dz], dhidden and Adam, of products: 32 N H + 16 t N + 40 N.

:func:`earlier_logits` makes targets in the same arithmetic on the same tiles: the residuals of a
head that did not change are exactly 0.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from hypermask_fast.kernels.device import cached, cast, multiprocessors, on_device, only_if
from hypermask_fast.kernels.head.adam import factored_adam
from hypermask_fast.kernels.head.arithmetic import exact_dot, residuals
from hypermask_fast.kernels.head.finish import finish
from hypermask_fast.kernels.head.hidden_grad import hidden_grad
from hypermask_fast.kernels.head.logits import residual_factors, target_logits
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
from hypermask_fast.kernels.head.step_products import WIDEST as WIDEST_PRODUCTS
from hypermask_fast.kernels.head.step_products import product_logits, residual_sums
from hypermask_fast.kernels.head.step_runs import plan_runs, step_runs_kernel
from hypermask_fast.kernels.head.step_runs import takes as takes_runs
from hypermask_fast.kernels.head.update import adam_update, load_scalars
from hypermask_fast.kernels.tuning import Config

# A thread has 4 columns of a chunk, also where a load could be wider: the logits of the step are
# those of the targets bit by bit.
CONFIGS: tuple[Config, ...] = (
    tiles(16, 32, 4, 4, 1),
    tiles(16, 32, 4, 4, 4),
    tiles(16, 32, 4, 3, 4),
    tiles(32, 32, 8, 2, 2),
)


@triton.jit
def load_two(ptr, stride, valid, count):
    """The elements at ``ptr`` of up to two of ``count`` rows."""
    first = tl.load(ptr, mask=only_if(valid, count > 0), other=0.0)
    return first, tl.load(ptr + stride, mask=only_if(valid, count > 1), other=0.0)


@triton.jit(do_not_specialize=["rows", "earlier", "targets_stride"])
def _step_rows_kernel(
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
    WIDTH: tl.constexpr,
    CHUNKS: tl.constexpr,
    WRITE_LOGITS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_H: tl.constexpr,
    AHEAD: tl.constexpr,
):
    """Tiles (BLOCK_N, CHUNKS * BLOCK_H); or only z, to targets, for hidden (t, H)."""
    WHOLE: tl.constexpr = triton.next_power_of_2(CHUNKS * BLOCK_H)
    row = tl.arange(0, BLOCK_N)
    column = tl.arange(0, BLOCK_H)
    slot = tl.arange(0, 16)
    squares = tl.zeros((BLOCK_N,), tl.float32)
    whole = tl.arange(0, WHOLE)
    sums = tl.zeros((16, WHOLE), tl.float32)
    if not WRITE_LOGITS:
        coefficient = tl.load(coefficient_ptr)
        taken = tl.load(scalars_ptr + 8) == 0
    program = tl.program_id(0).to(tl.int64)
    step = tl.num_programs(0) * BLOCK_N
    for start in tl.range(program * BLOCK_N, rows, step, disable_licm=True):
        first = start * WIDTH
        offsets = row[:, None] * WIDTH + column[None, :]
        valid = row < (rows - start).to(tl.int32)
        a = ()
        for chunk in tl.static_range(CHUNKS):
            mask = valid[:, None] & (column < WIDTH - chunk * BLOCK_H)[None, :]
            a += (cached(weight_ptr + first + (offsets + chunk * BLOCK_H), mask),)
        bias = tl.load(bias_ptr + start + row, mask=valid, other=0.0)
        later = start + step
        prefetch_weight(weight_ptr, bias_ptr, later, rows, WIDTH, BLOCK_N)
        if not WRITE_LOGITS:
            prefetch_weight(exp_avg_ptr, bias_exp_avg_ptr, later, rows, WIDTH, BLOCK_N)
            prefetch_weight(exp_avg_sq_ptr, bias_exp_avg_sq_ptr, later, rows, WIDTH, BLOCK_N)
            of_factors = later, rows, earlier, targets_stride
            prefetch_factors(dz_ptr, targets_ptr, *of_factors, BLOCK_N)
        h_ptr = hidden_ptr + column
        target_ptr = targets_ptr + start + row
        if not WRITE_LOGITS:
            targets = load_two(target_ptr, targets_stride, valid, earlier)
            # 0 times NaN would be NaN: a step that is not taken has no gradient.
            bias_grad = tl.load(dz_ptr + start + row, mask=only_if(valid, taken), other=0.0)
            factors = tl.where(slot[None, :] == 0, bias_grad[:, None], 0.0)
            grad = ()
            for chunk in tl.static_range(CHUNKS):
                inside = column < WIDTH - chunk * BLOCK_H
                h = tl.load(h_ptr + chunk * BLOCK_H, mask=inside, other=0.0)
                grad += (bias_grad[:, None] * h[None, :],)
            h_ptr += WIDTH
        for j in range(0, earlier, 2):
            hidden = ()
            products = ()
            for k in tl.static_range(2):
                z = tl.zeros((BLOCK_N, BLOCK_H), tl.float32)
                for chunk in tl.static_range(CHUNKS):
                    inside = only_if(column < WIDTH - chunk * BLOCK_H, j + k < earlier)
                    h = tl.load(h_ptr + (k * WIDTH + chunk * BLOCK_H), mask=inside, other=0.0)
                    z = tl.fma(a[chunk], h[None, :], z)
                    hidden += (h,)
                products += (z,)
            h_ptr += 2 * WIDTH
            for k in tl.static_range(2):
                live = only_if(valid, j + k < earlier)
                z = tl.sum(products[k], 1) + bias
                if WRITE_LOGITS:
                    tl.store(target_ptr, cast(z, targets_ptr.dtype.element_ty), mask=live)
                else:
                    residual = residuals(z, targets[k], live)
                    squares = tl.fma(residual, residual, squares)
                    dz = coefficient * residual
                    bias_grad += dz
                    factors = tl.where(slot[None, :] == j + k + 1, dz[:, None], factors)
                    before = grad
                    grad = ()
                    for chunk in tl.static_range(CHUNKS):
                        h = hidden[k * CHUNKS + chunk]
                        grad += (tl.fma(dz[:, None], h[None, :], before[chunk]),)
                target_ptr += targets_stride
            if not WRITE_LOGITS:
                targets = load_two(target_ptr, targets_stride, valid, earlier - j - 2)
        if not WRITE_LOGITS:
            # Not before the loops: they would fill registers there, as A would, kept since its
            # first load.
            of_moments = exp_avg_ptr + first, exp_avg_sq_ptr + first
            stepped = only_if(valid, taken)
            moments = first_moments(*of_moments, offsets, stepped, WIDTH, AHEAD)
            at = row[:, None] * WIDTH + whole[None, :]
            again = cached(weight_ptr + first + at, valid[:, None] & (whole < WIDTH)[None, :])
            sums = exact_dot(tl.trans(factors), again, sums)
            scalars = load_scalars(scalars_ptr)
            of_weight = weight_ptr + first, of_moments[0], of_moments[1], offsets, stepped
            adam_tile(*of_weight, grad, moments, scalars, WIDTH, CHUNKS)
            adam_update(
                *(bias_ptr + start, bias_exp_avg_ptr + start, bias_exp_avg_sq_ptr + start, row),
                *(bias, bias_grad, stepped, scalars),
            )
    if not WRITE_LOGITS:
        tl.store(squares_ptr + program, tl.sum(squares, 0))
        parts_ptr += program * (earlier + 1) * WIDTH
        at = slot[:, None] * WIDTH + whole[None, :]
        tl.store(parts_ptr + at, sums, mask=(slot <= earlier)[:, None] & (whole < WIDTH)[None, :])


def _passes(width: int, earlier: int) -> int:
    if earlier <= MOST:
        return 1 if width <= WIDEST else 3
    return 2 if width <= WIDEST_PRODUCTS else 3


def _one_pass(
    weight: Tensor, moments: Tensor, earlier: int, processors: int
) -> tuple[Any, tuple[int], dict[str, int]]:
    """Return the kernel of one pass, its grid and its constants."""
    if takes_runs(weight.shape[1]):
        return step_runs_kernel, *plan_runs(weight, moments, earlier, processors)
    return _step_rows_kernel, *plan("step_rows", CONFIGS, weight, earlier, processors)


def earlier_logits(
    weight: Tensor,
    bias: Tensor,
    hidden: Tensor,
    *,
    dtype: torch.dtype | None = None,
    processors: int | None = None,
) -> Tensor:
    """Return the logits that a step with these earlier embeddings forms, to be its targets.

    Args:
        weight: A (N, H), contiguous.
        bias: b (N,), contiguous.
        hidden: (t, H), of the earlier embeddings.
        dtype: Of the logits: float32 (the default) or bfloat16.
        processors: As in :func:`step_rows`.

    Returns:
        (t, N).
    """
    (rows, width), earlier = weight.shape, len(hidden)
    out = weight.new_empty(earlier, rows, dtype=dtype)
    if not out.numel():
        return out
    passes = _passes(width, earlier)
    if passes == 3:
        return target_logits(weight, bias, hidden, out)
    processors = processors or multiprocessors(weight.device)
    if passes == 2:
        return product_logits(weight, bias, hidden, out, processors)
    kernel, grid, config = _one_pass(weight, weight, earlier, processors)
    with on_device(weight):
        kernel[grid](
            *(weight, bias, None, None, None, None),
            *(None, hidden.contiguous(), out, None, None, None, None),
            *(rows, earlier, out.stride(0)),
            WRITE_LOGITS=True,
            enable_fp_fusion=False,
            **config,
        )
    return out


def step_rows(
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
    coefficient: Tensor,
    scalars: Tensor,
    processors: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Do the rest of a training step; A, b and their moments are updated in place.

    Args:
        weight, bias: A (N, H) and b (N,), contiguous.
        exp_avg, exp_avg_sq, bias_exp_avg, bias_exp_avg_sq: Moments like A and b, float32 or
            bfloat16, contiguous.
        dz_current: (N,), contiguous.
        hidden: (t + 1, H), the current embedding's first.
        targets: (t, N), float32 or bfloat16, rows may be apart; of :func:`earlier_logits` with
            ``hidden[1:]``.
        coefficient: One number, float32.
        scalars: Of :func:`~hypermask_fast.kernels.head.adam.adam_scalars`. A step that is
            skipped counts dz_current as 0.
        processors: Multiprocessors to fill; more or fewer only change the order of sums. Default:
            those of the device.

    Returns:
        The gradient to ``hidden`` (t + 1, H), and the sum of all squared residuals, 0-d float64.
    """
    (rows, width), earlier = weight.shape, len(targets)
    hidden = hidden.contiguous()
    targets = targets if targets.stride(1) == 1 else targets.contiguous()
    if not rows:
        return torch.zeros_like(hidden), weight.new_zeros((), dtype=torch.float64)
    passes = _passes(width, earlier)
    processors = processors or multiprocessors(weight.device)
    if passes > 1:
        numbers = {"coefficient": coefficient, "scalars": scalars}
        inputs = weight, bias, dz_current, hidden, targets
        if passes == 2:
            dz, grad, total = residual_sums(*inputs, **numbers, processors=processors)
        else:
            if earlier:
                dz, total = residual_factors(*inputs, **numbers)
            else:
                dz = torch.where(scalars[-1] == 0, dz_current, 0.0)[None]
                total = weight.new_zeros((), dtype=torch.float64)
            grad = hidden_grad(weight, dz)
        factored_adam(
            *(weight, exp_avg, exp_avg_sq, dz, hidden, scalars),
            bias=bias,
            bias_exp_avg=bias_exp_avg,
            bias_exp_avg_sq=bias_exp_avg_sq,
        )
        return grad, total
    kernel, grid, config = _one_pass(weight, exp_avg, earlier, processors)
    parts = weight.new_empty(grid[0], earlier + 1, width)
    squares = weight.new_empty(grid[0])
    with on_device(weight):
        kernel[grid](
            *(weight, bias, exp_avg, exp_avg_sq, bias_exp_avg, bias_exp_avg_sq),
            *(dz_current, hidden, targets, coefficient, scalars, parts, squares),
            *(rows, earlier, targets.stride(0)),
            WRITE_LOGITS=False,
            enable_fp_fusion=False,
            **config,
        )
    return finish(parts, squares)
