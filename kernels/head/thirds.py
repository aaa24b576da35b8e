"""Products of float32 matrices on matrix cores: each number a sum of three that bfloat16 holds.

Six of the nine products of thirds are taken; what is left out is below 2^-22 of a term. They are
twice as many as of tf32's halves and each takes half as long, but matrix cores read bfloat16 of
both orders from shared memory, where one copy of a tile so serves a product and its transpose.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hypermask_fast.kernels.device import INTERPRET, cast, on_device, only_if


@triton.jit
def _rounded(x):
    """x to the eight leading bits of its significand."""
    return ((x.to(tl.int32, bitcast=True) + 0x8000) & -0x10000).to(tl.float32, bitcast=True)


@triton.jit
def thirds(x):
    """Three parts of x, of which it is the sum, the largest first."""
    high = _rounded(x)
    rest = x - high
    middle = _rounded(rest)
    low = rest - middle
    if not INTERPRET:
        high, middle, low = high.to(tl.bfloat16), middle.to(tl.bfloat16), low.to(tl.bfloat16)
    return high, middle, low


@triton.jit
def load_thirds(ptr, size):
    """The three parts of a tile, which :func:`split` stored ``size`` elements apart."""
    high, middle, low = tl.load(ptr), tl.load(ptr + size), tl.load(ptr + 2 * size)
    if INTERPRET:
        high, middle, low = high.to(tl.float32), middle.to(tl.float32), low.to(tl.float32)
    return high, middle, low


@triton.jit
def transposed(parts):
    """The parts of a transposed tile."""
    return tl.trans(parts[0]), tl.trans(parts[1]), tl.trans(parts[2])


@triton.jit
def product(a, b):
    """a b of the thirds of both, with float32's accuracy; small terms first.

    To be added to a sum, not begun with it: a matrix core rounds each of its sums towards 0.
    """
    sums = tl.dot(a[2], b[0])
    sums = tl.dot(a[1], b[1], sums)
    sums = tl.dot(a[1], b[0], sums)
    sums = tl.dot(a[0], b[2], sums)
    sums = tl.dot(a[0], b[1], sums)
    return tl.dot(a[0], b[0], sums)


@triton.jit(do_not_specialize=["count", "first"])
def _split_kernel(
    hidden_ptr,
    out_ptr,
    count,
    first,
    size,
    row_stride,
    column_stride,
    WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The parts of a row of ``hidden``, with zeros around it."""
    row = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    known = only_if(column < WIDTH, (row >= first) & (row < first + count))
    parts = thirds(tl.load(hidden_ptr + (row - first) * WIDTH + column, mask=known, other=0.0))
    out_ptr += row * row_stride + column * column_stride
    for part in tl.static_range(3):
        third = cast(parts[part].to(tl.float32), tl.bfloat16)
        tl.store(out_ptr + part * size, third, mask=column < COLUMNS)


def split(
    hidden: Tensor, rows: int, columns: int, *, first: int = 0, transposed: bool = False
) -> Tensor:
    """Return the thirds of a matrix in a frame of zeros.

    Args:
        hidden: (r, H), contiguous.
        rows, columns: Of the frame.
        first: The frame's row that holds ``hidden[0]``; its column 0 is the first.
        transposed: Return (3, columns, rows).

    Returns:
        (3, rows, columns), bfloat16.
    """
    shape = (3, columns, rows) if transposed else (3, rows, columns)
    out = torch.empty(shape, dtype=torch.bfloat16, device=hidden.device)
    strides = (1, rows) if transposed else (columns, 1)
    with on_device(hidden):
        _split_kernel[(rows,)](
            *(hidden, out, len(hidden), first, rows * columns, *strides),
            WIDTH=hidden.shape[1],
            COLUMNS=columns,
            BLOCK=triton.next_power_of_2(columns),
            num_warps=1,
        )
    return out
