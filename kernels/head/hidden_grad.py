"""The gradient of the trunk's outputs, dh = dz A: A (N, H), dz (k, N) and dh (k, H), all float32.

Each of a number of programs that only N decides sums over its rows, one embedding by float32
multiply-adds, more by products; torch adds their parts in float64, in the order of the rows. Bytes:
A and dz once for every 128 embeddings.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hypermask_fast.kernels.device import on_device
from hypermask_fast.kernels.head.arithmetic import exact_dot
from hypermask_fast.kernels.head.logits import plan, tile
from hypermask_fast.kernels.tuning import Config

CONFIGS: dict[str, tuple[Config, ...]] = {
    "vector": (tile(32, 128, 4), tile(64, 64, 4), tile(64, 128, 8)),
    "matrix16": (tile(32, 128, 4), tile(64, 64, 4), tile(32, 64, 4)),
    "matrix128": (tile(32, 64, 8), tile(32, 32, 4), tile(32, 64, 8, 2)),
}
"""By the most embeddings at once."""

_PROGRAMS = 512
_ROWS = 128


@triton.jit
def _mask_logits_grad_kernel(
    weight_ptr,
    dz_ptr,
    parts_ptr,
    rows,
    count,
    program_rows,
    dz_stride,
    WIDTH: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """parts[program] (BLOCK_K, BLOCK_H) = dz A over the program's rows."""
    program = tl.program_id(0).to(tl.int64)
    begin = program * program_rows
    end = tl.minimum(begin + program_rows, rows)
    row = tl.arange(0, BLOCK_N)
    column = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    factor = tl.program_id(2) * BLOCK_K + tl.arange(0, BLOCK_K)
    inside = column < WIDTH
    used = factor < count
    offsets = row[:, None] * WIDTH + column[None, :]
    # One factor: a sum for each element of the tile, joined at the end.
    sums = tl.zeros((BLOCK_N if BLOCK_K == 1 else BLOCK_K, BLOCK_H), tl.float32)
    for start in range(begin, end, BLOCK_N):
        valid = row < end - start
        tile_ptr = weight_ptr + start * WIDTH + offsets
        a = tl.load(tile_ptr, mask=valid[:, None] & inside[None, :], other=0.0)
        if BLOCK_K == 1:
            dz = tl.load(dz_ptr + start + row, mask=valid, other=0.0)
            sums = tl.fma(a, dz[:, None], sums)
        else:
            at = dz_ptr + start + factor[:, None].to(tl.int64) * dz_stride + row[None, :]
            dz = tl.load(at, mask=used[:, None] & valid[None, :], other=0.0)
            sums = exact_dot(dz, a, sums)
    parts_ptr += program * count * WIDTH
    if BLOCK_K == 1:
        tl.store(parts_ptr + column, tl.sum(sums, 0), mask=inside)
    else:
        at = parts_ptr + factor[:, None] * WIDTH + column[None, :]
        tl.store(at, sums, mask=used[:, None] & inside[None, :])


def hidden_grad(weight: Tensor, dz: Tensor) -> Tensor:
    """Return dz A, the gradient to the trunk's outputs.

    Args:
        weight: A (N, H).
        dz: (r, N), rows may be apart.

    Returns:
        (r, H).
    """
    (rows, width), count = weight.shape, len(dz)
    dz = dz if dz.stride(1) == 1 else dz.contiguous()
    program_rows = max(1, triton.cdiv(triton.cdiv(rows, _PROGRAMS), _ROWS)) * _ROWS
    parts = weight.new_empty(triton.cdiv(rows, program_rows), count, width)
    if parts.numel():
        block, config = plan("mask_logits_{}_grad", CONFIGS, weight, count)
        grid = (len(parts), triton.cdiv(width, config["BLOCK_H"]), triton.cdiv(count, block))
        with on_device(weight):
            _mask_logits_grad_kernel[grid](
                *(weight.contiguous(), dz, parts),
                *(rows, count, program_rows, dz.stride(0)),
                BLOCK_K=block,
                **config,
            )
    return parts.sum(0, dtype=torch.float64).to(weight.dtype)
