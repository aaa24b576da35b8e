"""The rest of a training step in one pass over a head A (N, H), b (N,), after the task's backward.

For the t earlier embeddings, z_j = A h_j + b, r_j = z_j - target_j and dz_j = coefficient r_j. With
dz_0 of the current embedding: dhidden = dz A with A as it was, sum_j ||r_j||^2, and Adam on A and b
from the gradients dz^T hidden and sum_j dz_j. hidden (t + 1, H), dz_0 (N,), targets (t, N) float32
or bfloat16, moments float32 or bfloat16, all else float32. Bytes, with 4-byte moments and targets:

* H <= 256: 24 N H + 4 t N + 28 N: A, m and v are read and written once. Up to 15 earlier
  embeddings, logits and gradients are float32 multiply-adds; with more, they are products of
  float32's accuracy, and the partial sums of dhidden go through the L2 cache, t / (3 BLOCK_N) of
  the bytes of A, m and v.
* Wider heads: 32 N H + 28 t N + 36 N, as passes for logits, residuals, dhidden and Adam.

The programs stay and take tiles of rows in turn, so that there are few partial sums; torch adds
them in float64, in the programs' order.

:func:`earlier_logits` makes targets in the same arithmetic on the same tiles: the residuals of a
head that did not change are exactly 0.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from hypermask_fast.kernels._device import on_device
from hypermask_fast.kernels._tuning import Config, choose
from hypermask_fast.kernels.factored_adam import adam_update, factored_adam, load_scalars
from hypermask_fast.kernels.mask_logits import exact_dot, hidden_grad, mask_logits


CONFIGS: dict[str, tuple[Config, ...]] = {
    "sums": (
        {"BLOCK_N": 32, "BLOCK_H": 32, "PROGRAMS": 16, "num_warps": 4},
        {"BLOCK_N": 32, "BLOCK_H": 32, "PROGRAMS": 4, "num_warps": 4},
        {"BLOCK_N": 32, "BLOCK_H": 64, "PROGRAMS": 16, "num_warps": 4},
        {"BLOCK_N": 64, "BLOCK_H": 32, "PROGRAMS": 8, "num_warps": 8},
    ),
    "products": (
        {"BLOCK_N": 64, "BLOCK_T": 32, "PROGRAMS": 4, "num_warps": 8},
        {"BLOCK_N": 64, "BLOCK_T": 64, "PROGRAMS": 2, "num_warps": 8},
        {"BLOCK_N": 32, "BLOCK_T": 32, "PROGRAMS": 4, "num_warps": 4},
    ),
    "residuals": ({"BLOCK_N": 256, "num_warps": 4}, {"BLOCK_N": 512, "num_warps": 4}),
}
"""By how logits and gradients are formed: by multiply-adds, products, or kernels of their own.

``PROGRAMS`` is for each multiprocessor; ``BLOCK_T`` embeddings are taken at a time.
"""

_BUCKETS = (0, 3, 7, 11, 15)
"""Numbers of earlier embeddings that the kernel of multiply-adds is compiled for."""
_WIDEST = 256


@triton.jit
def _residuals(z, target, live):
    """z - target; 0 where z rounds to a target of a narrower dtype, and where not live."""
    wide = target.to(tl.float32)
    residual = z - wide
    if target.dtype != tl.float32:
        residual = tl.where(z.to(target.dtype).to(tl.float32) == wide, 0.0, residual)
    return tl.where(live, residual, 0.0)


@triton.jit
def _step_rows_sums_kernel(
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
    EARLIER: tl.constexpr,
    CHUNKS: tl.constexpr,
    WRITE_LOGITS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """Tiles (BLOCK_N, CHUNKS * BLOCK_H); or only z, to targets, for hidden (t, H)."""
    row = tl.arange(0, BLOCK_N)
    column = tl.arange(0, BLOCK_H)
    slot = tl.arange(0, 16)
    offsets = row[:, None] * WIDTH + column[None, :]
    squares = tl.zeros((BLOCK_N,), tl.float32)
    sums = ()
    for _ in tl.static_range(CHUNKS):
        sums += (tl.zeros((16, BLOCK_H), tl.float32),)
    if not WRITE_LOGITS:
        coefficient = tl.load(coefficient_ptr)
        scalars, taken = load_scalars(scalars_ptr)
    for tile in range(tl.program_id(0), tl.cdiv(rows, BLOCK_N), tl.num_programs(0)):
        start = tile.to(tl.int64) * BLOCK_N
        first = start * WIDTH
        valid = row < rows - start
        bias = tl.load(bias_ptr + start + row, mask=valid, other=0.0)
        a = ()
        for chunk in tl.static_range(CHUNKS):
            mask = valid[:, None] & (column < WIDTH - chunk * BLOCK_H)[None, :]
            tile_ptr = weight_ptr + first + chunk * BLOCK_H + offsets
            a += (tl.load(tile_ptr, mask=mask, other=0.0),)
        if not WRITE_LOGITS:
            # 0 times NaN would be NaN: a step that is not taken has no gradient.
            dz = tl.load(dz_ptr + start + row, mask=valid & taken, other=0.0)
            bias_grad = dz
            factors = tl.where(slot[None, :] == 0, dz[:, None], 0.0)
            grad = ()
            for chunk in tl.static_range(CHUNKS):
                at = column + chunk * BLOCK_H
                h = tl.load(hidden_ptr + at, mask=at < WIDTH, other=0.0)
                grad += (dz[:, None] * h[None, :],)
        for j in tl.static_range(EARLIER):
            live = valid & (j < earlier)
            hidden = ()
            z = tl.zeros((BLOCK_N, BLOCK_H), tl.float32)
            for chunk in tl.static_range(CHUNKS):
                at = column + chunk * BLOCK_H
                h_ptr = hidden_ptr + (j if WRITE_LOGITS else j + 1) * WIDTH + at
                h = tl.load(h_ptr, mask=(at < WIDTH) & (j < earlier), other=0.0)
                z = tl.fma(a[chunk], h[None, :], z)
                hidden += (h,)
            z = tl.sum(z, 1) + bias
            target_ptr = targets_ptr + j * targets_stride.to(tl.int64) + start + row
            if WRITE_LOGITS:
                tl.store(target_ptr, z.to(targets_ptr.dtype.element_ty), mask=live)
            else:
                residual = _residuals(z, tl.load(target_ptr, mask=live, other=0.0), live)
                squares = tl.fma(residual, residual, squares)
                dz = coefficient * residual
                bias_grad += dz
                factors = tl.where(slot[None, :] == j + 1, dz[:, None], factors)
                before = grad
                grad = ()
                for chunk in tl.static_range(CHUNKS):
                    grad += (tl.fma(dz[:, None], hidden[chunk][None, :], before[chunk]),)
        if not WRITE_LOGITS:
            before = sums
            sums = ()
            for chunk in tl.static_range(CHUNKS):
                sums += (exact_dot(tl.trans(factors), a[chunk], before[chunk]),)
            for chunk in tl.static_range(CHUNKS):
                mask = (valid & taken)[:, None] & (column < WIDTH - chunk * BLOCK_H)[None, :]
                at = first + chunk * BLOCK_H + offsets
                adam_update(
                    *(weight_ptr, exp_avg_ptr, exp_avg_sq_ptr),
                    *(at, a[chunk], grad[chunk], mask, scalars),
                )
            adam_update(
                *(bias_ptr, bias_exp_avg_ptr, bias_exp_avg_sq_ptr),
                *(start + row, bias, bias_grad, valid & taken, scalars),
            )
    if not WRITE_LOGITS:
        program = tl.program_id(0)
        tl.store(squares_ptr + program, tl.sum(squares, 0))
        parts_ptr += program.to(tl.int64) * (earlier + 1) * WIDTH
        for chunk in tl.static_range(CHUNKS):
            at = column + chunk * BLOCK_H
            mask = (slot <= earlier)[:, None] & (at < WIDTH)[None, :]
            tl.store(parts_ptr + slot[:, None] * WIDTH + at[None, :], sums[chunk], mask=mask)


@triton.jit
def _step_rows_products_kernel(
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
    WRITE_LOGITS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """Tiles (BLOCK_N, BLOCK_H), BLOCK_T embeddings at a time; or only z, to targets."""
    row = tl.arange(0, BLOCK_N)
    column = tl.arange(0, BLOCK_H)
    inside = column < WIDTH
    squares = tl.zeros((BLOCK_N, BLOCK_T), tl.float32)
    if not WRITE_LOGITS:
        coefficient = tl.load(coefficient_ptr)
        scalars, taken = load_scalars(scalars_ptr)
        parts_ptr += tl.program_id(0).to(tl.int64) * (earlier + 1) * WIDTH
    for tile in range(tl.program_id(0), tl.cdiv(rows, BLOCK_N), tl.num_programs(0)):
        start = tile.to(tl.int64) * BLOCK_N
        offsets = start * WIDTH + (row[:, None] * WIDTH + column[None, :])
        valid = row < rows - start
        whole = valid[:, None] & inside[None, :]
        bias = tl.load(bias_ptr + start + row, mask=valid, other=0.0)
        a = tl.load(weight_ptr + offsets, mask=whole, other=0.0)
        if not WRITE_LOGITS:
            current = tl.load(dz_ptr + start + row, mask=valid & taken, other=0.0)
            grad = tl.zeros((BLOCK_N, BLOCK_H), tl.float32)
            dz_sum = tl.zeros((BLOCK_N, BLOCK_T), tl.float32)
        for first in range(0, earlier + 1, BLOCK_T):
            # Slot 0 is the current embedding, which earlier logits do not have.
            slot = first + tl.arange(0, BLOCK_T)
            known = (slot <= earlier) & (slot >= (1 if WRITE_LOGITS else 0))
            h_at = (slot - (1 if WRITE_LOGITS else 0))[:, None] * WIDTH + column[None, :]
            h = tl.load(hidden_ptr + h_at, mask=known[:, None] & inside[None, :], other=0.0)
            z = exact_dot(a, tl.trans(h), tl.zeros((BLOCK_N, BLOCK_T), tl.float32)) + bias[:, None]
            live = valid[:, None] & ((slot >= 1) & known)[None, :]
            target_ptr = targets_ptr + start + row[:, None]
            target_ptr += (slot - 1)[None, :] * targets_stride.to(tl.int64)
            if WRITE_LOGITS:
                tl.store(target_ptr, z.to(targets_ptr.dtype.element_ty), mask=live)
            else:
                residual = _residuals(z, tl.load(target_ptr, mask=live, other=0.0), live)
                squares = tl.fma(residual, residual, squares)
                dz = tl.where((slot == 0)[None, :], current[:, None], coefficient * residual)
                dz_sum += dz
                grad = exact_dot(dz, h, grad)
                at = parts_ptr + slot[:, None] * WIDTH + column[None, :]
                mask = known[:, None] & inside[None, :]
                begun = tile >= tl.num_programs(0)
                part = tl.load(at, mask=mask & begun, other=0.0)
                tl.store(at, exact_dot(tl.trans(dz), a, part), mask=mask)
                # Another thread may read, in the next tile, what this one wrote.
                tl.debug_barrier()
        if not WRITE_LOGITS:
            adam_update(
                *(weight_ptr, exp_avg_ptr, exp_avg_sq_ptr),
                *(offsets, a, grad, whole & taken, scalars),
            )
            adam_update(
                *(bias_ptr, bias_exp_avg_ptr, bias_exp_avg_sq_ptr),
                *(start + row, bias, tl.sum(dz_sum, 1), valid & taken, scalars),
            )
    if not WRITE_LOGITS:
        tl.store(squares_ptr + tl.program_id(0), tl.sum(tl.sum(squares, 1), 0))


@triton.jit
def _step_rows_residuals_kernel(
    z_ptr,
    dz_ptr,
    targets_ptr,
    coefficient_ptr,
    scalars_ptr,
    out_ptr,
    squares_ptr,
    rows,
    earlier,
    targets_stride,
    BLOCK_N: tl.constexpr,
):
    """out (t + 1, N) = [dz_0, coefficient (z - targets)], BLOCK_N columns of it."""
    start = tl.program_id(0).to(tl.int64) * BLOCK_N
    row = tl.arange(0, BLOCK_N)
    valid = row < rows - start
    taken = tl.load(scalars_ptr + 8) == 0
    coefficient = tl.load(coefficient_ptr)
    squares = tl.zeros((BLOCK_N,), tl.float32)
    dz = tl.load(dz_ptr + start + row, mask=valid & taken, other=0.0)
    out_ptr += start
    tl.store(out_ptr + row, dz, mask=valid)
    z_ptr += start
    targets_ptr += start
    for _ in range(earlier):
        out_ptr += rows
        target = tl.load(targets_ptr + row, mask=valid, other=0.0)
        residual = _residuals(tl.load(z_ptr + row, mask=valid, other=0.0), target, valid)
        squares = tl.fma(residual, residual, squares)
        tl.store(out_ptr + row, coefficient * residual, mask=valid)
        z_ptr += rows
        targets_ptr += targets_stride
    tl.store(squares_ptr + tl.program_id(0), tl.sum(squares, 0))


@cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def _plan(
    weight: Tensor, earlier: int, processors: int | None
) -> tuple[Any, tuple[int], dict[str, int]]:
    """Return the kernel, its grid and its constants; the same for targets as for steps."""
    rows, width = weight.shape
    kind = "sums" if earlier <= _BUCKETS[-1] else "products"
    sizes = {"rows": rows, "width": width, "count": earlier}
    constants = dict(choose(f"step_rows_{kind}", CONFIGS[kind], weight.device, **sizes))
    if processors is None:
        processors = _multiprocessors(weight.device) if weight.is_cuda else 1
    programs = constants.pop("PROGRAMS") * processors
    padded = max(16, triton.next_power_of_2(width))
    constants |= {"WIDTH": width, "BLOCK_H": min(padded, constants.get("BLOCK_H", padded))}
    if width > _WIDEST // 2:
        constants["BLOCK_N"] = max(16, constants["BLOCK_N"] // 2)
    kernel = _step_rows_products_kernel
    if kind == "sums":
        constants["EARLIER"] = next(size for size in _BUCKETS if size >= earlier)
        constants["CHUNKS"] = triton.cdiv(width, constants["BLOCK_H"])
        kernel = _step_rows_sums_kernel
    return kernel, (min(programs, triton.cdiv(rows, constants["BLOCK_N"])),), constants


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
    dtype = dtype or weight.dtype
    if width > _WIDEST:
        return mask_logits(weight, bias, hidden).to(dtype)
    out = weight.new_empty(earlier, rows, dtype=dtype)
    if out.numel():
        kernel, grid, constants = _plan(weight, earlier, processors)
        with on_device(weight):
            kernel[grid](
                *(weight, bias, None, None, None, None),
                *(None, hidden.contiguous(), out, None, None, None, None),
                *(rows, earlier, out.stride(0)),
                WRITE_LOGITS=True,
                enable_fp_fusion=False,
                **constants,
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
        scalars: Of :func:`~hypermask_fast.kernels.factored_adam.adam_scalars`. A step that is
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
    if width > _WIDEST:
        z = mask_logits(weight, bias, hidden[1:])
        dz = weight.new_empty(earlier + 1, rows)
        sizes = {"rows": rows, "width": width, "count": earlier}
        config = choose("step_rows_residuals", CONFIGS["residuals"], weight.device, **sizes)
        squares = weight.new_empty(triton.cdiv(rows, config["BLOCK_N"]))
        with on_device(weight):
            _step_rows_residuals_kernel[(len(squares),)](
                *(z, dz_current, targets, coefficient, scalars, dz, squares),
                *(rows, earlier, targets.stride(0)),
                **config,
            )
        grad = hidden_grad(weight, dz)
        factored_adam(
            *(weight, exp_avg, exp_avg_sq, dz, hidden, scalars),
            bias=bias,
            bias_exp_avg=bias_exp_avg,
            bias_exp_avg_sq=bias_exp_avg_sq,
        )
        return grad, squares.sum(dtype=torch.float64)
    kernel, grid, constants = _plan(weight, earlier, processors)
    parts = weight.new_empty(grid[0], earlier + 1, width)
    squares = weight.new_empty(grid[0])
    with on_device(weight):
        kernel[grid](
            *(weight, bias, exp_avg, exp_avg_sq, bias_exp_avg, bias_exp_avg_sq),
            *(dz_current, hidden, targets, coefficient, scalars, parts, squares),
            *(rows, earlier, targets.stride(0)),
            WRITE_LOGITS=False,
            enable_fp_fusion=False,
            **constants,
        )
    return parts.sum(0, dtype=torch.float64).to(weight.dtype), squares.sum(dtype=torch.float64)
