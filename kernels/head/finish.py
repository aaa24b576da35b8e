"""What ends a pass over a head: the sums of what its programs left, in float64 and in one launch.

parts (P, t + 1, H) and squares float32 become the gradient of hidden (t + 1, H), rounded once,
and the sum of all squared residuals. The order of the sums depends on the sizes alone.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hypermask_fast.kernels.device import on_device
from hypermask_fast.kernels.tuning import choose

CONFIGS = (
    {"BLOCK_P": 128, "BLOCK_K": 16, "num_warps": 4},
    {"BLOCK_P": 64, "BLOCK_K": 32, "num_warps": 4},
    {"BLOCK_P": 256, "BLOCK_K": 16, "num_warps": 8},
)


@triton.jit(do_not_specialize=["programs", "entries", "count"])
def _finish_kernel(
    parts_ptr,
    squares_ptr,
    grad_ptr,
    total_ptr,
    programs,
    entries,
    count,
    BLOCK_P: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Columns of parts (P, K), BLOCK_K of them; the first program also sums the squares."""
    part = tl.arange(0, BLOCK_P)
    entry = tl.program_id(0) * BLOCK_K + tl.arange(0, BLOCK_K)
    sums = tl.zeros((BLOCK_P, BLOCK_K), tl.float64)
    for first in range(0, programs, BLOCK_P):
        row = first + part
        mask = (row < programs)[:, None] & (entry < entries)[None, :]
        at = row[:, None].to(tl.int64) * entries + entry[None, :]
        sums += tl.load(parts_ptr + at, mask=mask, other=0.0).to(tl.float64)
    tl.store(grad_ptr + entry, tl.sum(sums, 0).to(tl.float32), mask=entry < entries)
    if tl.program_id(0) == 0:
        total = tl.zeros((BLOCK_P,), tl.float64)
        for first in range(0, count, BLOCK_P):
            row = first + part
            total += tl.load(squares_ptr + row, mask=row < count, other=0.0).to(tl.float64)
        tl.store(total_ptr, tl.sum(total, 0))


def finish(parts: Tensor, squares: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sums of what the programs of a pass left.

    Args:
        parts: (P, t + 1, H) float32, contiguous, of the gradient of hidden.
        squares: float32, contiguous, any number of them.

    Returns:
        (t + 1, H) float32, and a 0-d float64.
    """
    grad = parts.new_empty(parts.shape[1:])
    sizes = {"programs": len(parts), "entries": grad.numel()}
    config = choose("finish", CONFIGS, parts.device, **sizes)
    total = squares.new_empty((), dtype=torch.float64)
    with on_device(parts):
        _finish_kernel[(max(1, triton.cdiv(grad.numel(), config["BLOCK_K"])),)](
            *(parts, squares, grad, total, len(parts), grad.numel(), squares.numel()), **config
        )
    return grad, total
