"""Tiles of embeddings and rows, for which programs that stay form products in turn."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from hypermask_fast.kernels.device import fit, only_if
from hypermask_fast.kernels.head.arithmetic import residuals
from hypermask_fast.kernels.tuning import Config, choose


@triton.jit
def tile_factors(
    z,
    row,
    slot,
    valid,
    used,
    start,
    current_ptr,
    targets_ptr,
    coefficient_ptr,
    scalars_ptr,
    targets_stride,
):
    """[dz_0, dz] of a tile of z (embeddings, rows), and the sum of the squares of its residuals."""
    live = (used & (slot >= 1))[:, None] & valid[None, :]
    at = slot[:, None].to(tl.int64) * targets_stride + row[None, :]
    target = tl.load(targets_ptr + (start - targets_stride) + at, mask=live, other=0.0)
    residual = residuals(z, target, live)
    squares = tl.sum(residual * residual)
    taken = tl.load(scalars_ptr + 8) == 0
    # 0 times NaN would be NaN: a step that is not taken has no gradient.
    mine = only_if(valid, taken & (tl.program_id(0) == 0))
    current = tl.load(current_ptr + start + row, mask=mine, other=0.0)
    dz = tl.load(coefficient_ptr) * residual
    return tl.where((slot == 0)[:, None], current[None, :], dz), squares


@triton.jit
def store_sums(
    parts_ptr,
    squares_ptr,
    sums,
    squares,
    slot,
    used,
    count,
    WIDTH: tl.constexpr,
    CHUNKS: tl.constexpr,
    LAST: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """Write what a program (blocks of embeddings, tiles of rows) summed over its tiles."""
    program = tl.program_id(1).to(tl.int64)
    tl.store(squares_ptr + program * tl.num_programs(0) + tl.program_id(0), squares)
    parts_ptr += program * count * WIDTH
    for chunk in tl.static_range(CHUNKS):
        part = chunk * BLOCK_H + tl.arange(0, BLOCK_H if chunk + 1 < CHUNKS else LAST)
        mask = used[:, None] & (part < WIDTH)[None, :]
        tl.store(parts_ptr + slot[:, None] * WIDTH + part[None, :], sums[chunk], mask=mask)


def plan(
    operation: str, configs: tuple[Config, ...], weight: Tensor, count: int, processors: int
) -> tuple[tuple[int, int], dict[str, int]]:
    """Return the grid and the kernel's constants; the same for targets as for steps.

    Args:
        operation: That was tuned.
        configs: ``BLOCK_K`` embeddings at most, ``BLOCK_N`` rows, ``BLOCK_H`` columns at a time and
            ``PROGRAMS`` for each multiprocessor; the default first.
        weight: A (N, H).
        count: Embeddings, with the current one.
        processors: Multiprocessors to fill.
    """
    rows, width = weight.shape
    sizes = {"rows": rows, "width": width, "count": count}
    config = dict(choose(operation, configs, weight.device, **sizes))
    block = fit(config["BLOCK_K"], count)
    blocks = triton.cdiv(count, block)
    programs = max(1, config.pop("PROGRAMS") * processors // blocks)
    columns = fit(config["BLOCK_H"], width)
    last = max(16, triton.next_power_of_2((width - 1) % columns + 1))
    config |= {"BLOCK_K": block, "BLOCK_H": columns, "WIDTH": width}
    config |= {"CHUNKS": triton.cdiv(width, columns), "LAST": last}
    return (blocks, min(programs, triton.cdiv(rows, config["BLOCK_N"]))), config
