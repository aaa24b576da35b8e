"""Adam on a head from many factors, on GPUs whose matrix cores read from shared memory.

As ``adam``, whose other way to products serves the other GPUs. hidden stays in shared memory as
thirds; a program takes tiles of rows in turn and has the next in the L2 cache meanwhile. Bytes:
24 N H + 4 r N + 24 N, with moments in bfloat16 16 N H + 4 r N + 16 N.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from hypermask_fast.kernels.device import fit, only_if, prefetch, prefetch_run
from hypermask_fast.kernels.head.thirds import load_thirds, product, split, thirds
from hypermask_fast.kernels.head.update import adam_from, adam_update, load_moments, load_scalars
from hypermask_fast.kernels.tuning import Config, choose


def _config(rows: int, columns: int, warps: int, tiles: int) -> Config:
    sizes = {"BLOCK_R": 128, "BLOCK_N": rows, "BLOCK_H": columns, "TILES": tiles}
    return {**sizes, "num_warps": warps}


CONFIGS: tuple[Config, ...] = (
    _config(32, 64, 4, 32),
    _config(32, 64, 4, 16),
    _config(32, 128, 8, 32),
)
"""``BLOCK_R`` factors at once, by programs that take ``TILES`` at most."""

_PROGRAMS = 1024
_MOST_PROGRAMS = 65535


@triton.jit(do_not_specialize=["count", "tiles"])
def _factored_adam_wgmma_kernel(
    dz_ptr,
    hidden_ptr,
    scalars_ptr,
    weight_ptr,
    exp_avg_ptr,
    exp_avg_sq_ptr,
    bias_ptr,
    bias_exp_avg_ptr,
    bias_exp_avg_sq_ptr,
    rows,
    count,
    tiles,
    dz_columns,
    dz_stride,
    UNIT: tl.constexpr,
    WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCKS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """Adam on tiles (BLOCK_N, BLOCK_H) of A, one of COLUMNS; the first column also does b.

    Hidden (3, COLUMNS BLOCK_H, BLOCKS BLOCK_R) is split. The gradient is formed transposed, and
    only it changes its layout; the next tile is on its way to the L2 cache meanwhile.
    """
    row = tl.arange(0, BLOCK_N)
    column = tl.program_id(0) * BLOCK_H + tl.arange(0, BLOCK_H)
    factor = tl.arange(0, BLOCK_R)
    scalars = load_scalars(scalars_ptr)
    taken = tl.load(scalars_ptr + 8) == 0
    dz_columns *= UNIT
    dz_stride = tl.cast(dz_stride, tl.int64) * UNIT
    PADDED: tl.constexpr = BLOCKS * BLOCK_R
    SIZE: tl.constexpr = COLUMNS * BLOCK_H * PADDED
    SHARE: tl.constexpr = triton.cdiv(BLOCK_N * WIDTH, COLUMNS)
    hidden_ptr += column[:, None] * PADDED + factor[None, :]
    if BLOCKS == 1:
        hidden = load_thirds(hidden_ptr, SIZE)
    begin = tl.program_id(1).to(tl.int64) * tiles * BLOCK_N
    end = tl.minimum(begin + tiles * BLOCK_N, rows)
    for start in tl.range(begin, end, BLOCK_N, num_stages=1, disable_licm=True):
        after = start + BLOCK_N
        left = tl.minimum(end - after, BLOCK_N).to(tl.int32)
        share = tl.program_id(0) * SHARE
        first, rest = after * WIDTH + share, left * WIDTH - share
        prefetch_run(weight_ptr + first, rest, SHARE)
        prefetch_run(exp_avg_ptr + first, rest, SHARE)
        prefetch_run(exp_avg_sq_ptr + first, rest, SHARE)
        run = 8 * tl.arange(0, BLOCK_N // 8)
        next_ptr = dz_ptr + after + factor[:, None] * dz_stride + run[None, :]
        prefetch(next_ptr, (factor < count)[:, None] & (run < left)[None, :])
        valid = only_if(row < (rows - start).to(tl.int32), taken)
        if bias_ptr is not None:
            ours = only_if(valid, tl.program_id(0) == 0)
            prefetch_run(bias_ptr + after, left, BLOCK_N)
            prefetch_run(bias_exp_avg_ptr + after, left, BLOCK_N)
            prefetch_run(bias_exp_avg_sq_ptr + after, left, BLOCK_N)
            b = tl.load(bias_ptr + start + row, mask=ours, other=0.0)
            bias_moments = load_moments(bias_exp_avg_ptr, bias_exp_avg_sq_ptr, start + row, ours)
        # Up to whole vectors, where rows are padded; what is there reaches no gradient.
        held = only_if(row < (dz_columns - start).to(tl.int32), taken)[None, :]
        at = dz_ptr + start + factor[:, None] * dz_stride + row[None, :]
        if BLOCKS == 1:
            dz = tl.load(at, mask=(factor < count)[:, None] & held, other=0.0)
        else:
            grad = tl.zeros((BLOCK_H, BLOCK_N), tl.float32)
            bias_grad = tl.zeros((BLOCK_N,), tl.float32)
            for other in range(0, PADDED, BLOCK_R):
                mask = (factor < count - other)[:, None] & held
                dz = tl.load(at + other * dz_stride, mask=mask, other=0.0)
                hidden = load_thirds(hidden_ptr + other, SIZE)
                grad += product(hidden, thirds(dz))
                bias_grad += tl.sum(dz, 0)
        if bias_ptr is not None:  # noqa: SIM102 - decides what is compiled
            if tl.program_id(0) == 0:
                if BLOCKS == 1:
                    bias_grad = tl.sum(dz, 0)
                adam_from(
                    *(bias_ptr, bias_exp_avg_ptr, bias_exp_avg_sq_ptr, start + row),
                    *(b, bias_moments, bias_grad, valid, scalars),
                )
        if BLOCKS == 1:
            grad = product(hidden, thirds(dz))
        at = start * WIDTH + (row[:, None] * WIDTH + column[None, :])
        mask = valid[:, None] & (column < WIDTH)[None, :]
        a = tl.load(weight_ptr + at, mask=mask, other=0.0)
        adam_update(weight_ptr, exp_avg_ptr, exp_avg_sq_ptr, at, a, tl.trans(grad), mask, scalars)


def adam_by_wgmma(
    parameters: Sequence[Tensor | None], dz: Tensor, hidden: Tensor, scalars: Tensor
) -> None:
    """Apply one Adam step.

    Args:
        parameters: A, its two moments, b or None, and its two moments.
        dz, hidden, scalars: As in ``factored_adam``; rows of dz are contiguous.
    """
    weight = parameters[0]
    assert weight is not None
    (rows, width), count = weight.shape, len(hidden)
    sizes = {"rows": rows, "width": width, "count": count}
    config = dict(choose("factored_adam_wgmma", CONFIGS, weight.device, **sizes))
    config["BLOCK_H"] = columns = fit(config["BLOCK_H"], width)
    config["BLOCK_R"] = block = fit(config["BLOCK_R"], count)
    blocks, across = triton.cdiv(count, block), triton.cdiv(width, columns)
    tiles = triton.cdiv(rows, config["BLOCK_N"])
    # Programs enough to fill a GPU, each of as many tiles as pay for its copy of hidden.
    each = max(1, min(config.pop("TILES"), tiles * across // _PROGRAMS))
    each = max(each, triton.cdiv(tiles, _MOST_PROGRAMS))
    # The compiler learns of their alignment what it loads factors by.
    unit = math.gcd(16, dz.shape[1], dz.stride(0))
    parts = split(hidden.contiguous(), blocks * block, across * columns, transposed=True)
    _factored_adam_wgmma_kernel[across, triton.cdiv(tiles, each)](
        *(dz, parts, scalars, *parameters, rows, count, each),
        *(dz.shape[1] // unit, dz.stride(0) // unit),
        UNIT=unit,
        WIDTH=width,
        COLUMNS=across,
        BLOCKS=blocks,
        enable_fp_fusion=False,
        **config,
    )
