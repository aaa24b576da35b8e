"""One pass of a step over a head A (N, H) of an odd width, of products; see :mod:`.step`.

Rows of an odd width are no aligned vectors, but a tile of rows is one run of memory that is: Adam
takes A and its moments as runs, 16 bytes at a time. Logits, gradients and dhidden are products of
float32's accuracy of the same tile as rows; only the gradient goes from rows to the run.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from hypermask_fast.kernels.device import cached, cast, only_if
from hypermask_fast.kernels.head.arithmetic import exact_dot, residuals
from hypermask_fast.kernels.head.row_tiles import limits, prefetch_factors, prefetch_weight
from hypermask_fast.kernels.head.update import adam_update, adam_values, load_scalars
from hypermask_fast.kernels.tuning import Config, choose

_COLUMNS = tl.constexpr(32)
_NAME = "step_rows_runs"


def _config(rows: int, warps: int, programs: int) -> Config:
    return {"BLOCK_N": rows, "PROGRAMS": programs, "num_warps": warps}


CONFIGS: tuple[Config, ...] = (_config(64, 4, 2), _config(64, 4, 3))
"""Rows of A in a tile, warps of a program, and programs for each multiprocessor."""


@triton.jit
def _load_run(ptr, at, size, SIZE: tl.constexpr):
    """Elements up to ``size`` of a run of SIZE; a whole run by vectors."""
    if size >= SIZE:
        run = tl.load(ptr + at, mask=at < SIZE, other=0.0)
    else:
        run = tl.load(ptr + at, mask=at < size, other=0.0)
    return run


@triton.jit
def _store_run(ptr, at, run, size, SIZE: tl.constexpr):
    """As :func:`_load_run`."""
    stored = cast(run, ptr.dtype.element_ty)
    if size >= SIZE:
        tl.store(ptr + at, stored, mask=at < SIZE)
    else:
        tl.store(ptr + at, stored, mask=at < size)


@triton.jit(do_not_specialize=["rows", "earlier", "targets_stride"])
def step_runs_kernel(
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
    BLOCK_N: tl.constexpr,
):
    """Tiles of BLOCK_N rows; or only z, to targets, for hidden (t, H)."""
    SIZE: tl.constexpr = BLOCK_N * WIDTH
    row = tl.arange(0, BLOCK_N)
    column = tl.arange(0, _COLUMNS)
    slot = tl.arange(0, 16)
    # Of the embeddings, the current one's first; but for targets.
    first_slot = 0 if WRITE_LOGITS else 1
    count = earlier + first_slot
    squares = tl.zeros((BLOCK_N,), tl.float32)
    sums = tl.zeros((16, _COLUMNS), tl.float32)
    if not WRITE_LOGITS:
        coefficient = tl.load(coefficient_ptr)
        taken = tl.load(scalars_ptr + 8) == 0
    program = tl.program_id(0).to(tl.int64)
    step = tl.num_programs(0) * BLOCK_N
    for start in tl.range(program * BLOCK_N, rows, step, num_stages=1, disable_licm=True):
        first = start * WIDTH
        left = tl.minimum(rows - start, BLOCK_N).to(tl.int32)  # left * WIDTH fits in 32 bits
        valid = row < left
        inside = (column < WIDTH)[None, :]
        at = row[:, None] * WIDTH + column[None, :]
        a = cached(weight_ptr + first + at, valid[:, None] & inside)
        bias = tl.load(bias_ptr + start + row, mask=valid, other=0.0)
        at = slot[:, None] * WIDTH + column[None, :]
        hidden = tl.load(hidden_ptr + at, mask=(slot < count)[:, None] & inside, other=0.0)
        at = (slot - first_slot).to(tl.int64)[None, :] * targets_stride + row[:, None]
        kept = valid[:, None] & ((slot >= first_slot) & (slot < count))[None, :]
        later = start + step
        prefetch_weight(weight_ptr, bias_ptr, later, rows, WIDTH, BLOCK_N)
        if not WRITE_LOGITS:
            # 0 times NaN would be NaN: a step that is not taken has no gradient.
            dz = tl.load(dz_ptr + start + row, mask=only_if(valid, taken), other=0.0)
            targets = tl.load(targets_ptr + start + at, mask=kept, other=0.0)
            prefetch_weight(exp_avg_ptr, bias_exp_avg_ptr, later, rows, WIDTH, BLOCK_N)
            prefetch_weight(exp_avg_sq_ptr, bias_exp_avg_sq_ptr, later, rows, WIDTH, BLOCK_N)
            of_factors = later, rows, earlier, targets_stride
            prefetch_factors(dz_ptr, targets_ptr, *of_factors, BLOCK_N)
        z = exact_dot(a, tl.trans(hidden), tl.zeros((BLOCK_N, 16), tl.float32)) + bias[:, None]
        if WRITE_LOGITS:
            tl.store(targets_ptr + start + at, cast(z, targets_ptr.dtype.element_ty), mask=kept)
        else:
            residual = residuals(z, targets, kept)
            squares += tl.sum(residual * residual, 1)
            factors = tl.where(slot[None, :] == 0, dz[:, None], coefficient * residual)
            grad = exact_dot(factors, hidden, tl.zeros((BLOCK_N, _COLUMNS), tl.float32))
            # Again, not kept: it would fill registers through the other products.
            at = row[:, None] * WIDTH + column[None, :]
            again = cached(weight_ptr + first + at, valid[:, None] & inside)
            sums = exact_dot(tl.trans(factors), again, sums)
            scalars = load_scalars(scalars_ptr)
            run = tl.arange(0, BLOCK_N * _COLUMNS)
            in_rows = tl.minimum(run // WIDTH, BLOCK_N - 1) * _COLUMNS + run % WIDTH
            grad = tl.gather(grad.reshape(BLOCK_N * _COLUMNS), in_rows, 0)
            size = tl.where(taken, left * WIDTH, 0)
            parameter = _load_run(weight_ptr + first, run, size, SIZE)
            exp_avg = _load_run(exp_avg_ptr + first, run, size, SIZE)
            exp_avg_sq = _load_run(exp_avg_sq_ptr + first, run, size, SIZE)
            parameter, exp_avg, exp_avg_sq = adam_values(
                parameter, exp_avg.to(tl.float32), exp_avg_sq.to(tl.float32), grad, scalars
            )
            _store_run(weight_ptr + first, run, parameter, size, SIZE)
            _store_run(exp_avg_ptr + first, run, exp_avg, size, SIZE)
            _store_run(exp_avg_sq_ptr + first, run, exp_avg_sq, size, SIZE)
            adam_update(
                *(bias_ptr + start, bias_exp_avg_ptr + start, bias_exp_avg_sq_ptr + start, row),
                *(bias, tl.sum(factors, 1), only_if(valid, taken), scalars),
            )
    if not WRITE_LOGITS:
        tl.store(squares_ptr + program, tl.sum(squares, 0))
        parts_ptr += program * count * WIDTH
        at = slot[:, None] * WIDTH + column[None, :]
        tl.store(parts_ptr + at, sums, mask=(slot < count)[:, None] & (column < WIDTH)[None, :])


def takes(width: int) -> bool:
    """Return whether the pass is for heads of this width."""
    return 16 < width <= _COLUMNS.value and width % 4 != 0


def plan_runs(
    weight: Tensor, moments: Tensor, earlier: int, processors: int
) -> tuple[tuple[int], dict[str, int]]:
    """Return the grid and the kernel's constants of a pass over A (N, H).

    Args:
        weight, moments: A, and what is like its moments.
        earlier, processors: As in :func:`~hypermask_fast.kernels.head.row_tiles.plan`.
    """
    rows, width = weight.shape
    config = dict(choose(_NAME, CONFIGS, weight.device, rows=rows, width=width, count=earlier))
    programs = config.pop("PROGRAMS")
    if moments.dtype != weight.dtype:
        programs = min(2, programs)  # To convert them takes registers.
    config |= {"WIDTH": width, **limits(programs, config["num_warps"])}
    programs *= processors
    return (min(programs, triton.cdiv(rows, config["BLOCK_N"])),), config
