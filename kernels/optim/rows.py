"""Adam on tables of which rows without a gradient stay: in one launch, and its state with them.

A row whose gradient is exactly 0 keeps its values and moments; NaN counts as a gradient. table,
gradient and moments are (R, D) float32. Bytes: 4 R D, and 24 for each entry of a row that moves.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from hypermask_fast.kernels.device import on_device
from hypermask_fast.kernels.head.numbers import number, step_constants, step_numbers
from hypermask_fast.kernels.head.update import adam_update


@triton.jit(do_not_specialize=["width"])
def _adam_rows_kernel(
    table_ptr,
    exp_avg_ptr,
    exp_avg_sq_ptr,
    grad_ptr,
    lr_ptr,
    step_ptr,
    finite_ptr,
    width,
    BETA1: tl.constexpr,
    BETA2: tl.constexpr,
    LOG_BETA1: tl.constexpr,
    LOG_BETA2: tl.constexpr,
    EPS: tl.constexpr,
    L2: tl.constexpr,
    DECAY: tl.constexpr,
    SIGN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One row, BLOCK entries at a time."""
    start = tl.program_id(0).to(tl.int64) * width
    column = tl.arange(0, BLOCK)
    moved = tl.zeros((BLOCK,), tl.int32)
    for first in range(0, width, BLOCK):
        inside = first + column < width
        grad = tl.load(grad_ptr + start + first + column, mask=inside, other=0.0)
        moved |= (grad != 0).to(tl.int32)
    moves = tl.max(moved, 0) > 0
    if finite_ptr is not None:
        moves = moves & (tl.load(finite_ptr) != 0)
    if moves:
        lr = tl.load(lr_ptr).to(tl.float64)
        step = tl.load(step_ptr).to(tl.float64)
        one = tl.full((), 1.0, tl.float64)
        scalars = step_numbers(
            lr, step, one, BETA1, BETA2, LOG_BETA1, LOG_BETA2, EPS, L2, DECAY, SIGN
        )
        for first in range(0, width, BLOCK):
            inside = first + column < width
            at = start + first + column
            adam_update(
                *(table_ptr, exp_avg_ptr, exp_avg_sq_ptr, at),
                tl.load(table_ptr + at, mask=inside, other=0.0),
                tl.load(grad_ptr + at, mask=inside, other=0.0),
                *(inside, scalars),
            )


def adam_rows(
    table: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    grad: Tensor,
    *,
    step: float | Tensor,
    lr: float | Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
    maximize: bool = False,
    finite: Tensor | None = None,
) -> None:
    """Apply an Adam step to the rows of a table that have a gradient, in place.

    Args:
        table: (R, ...) float32, contiguous.
        exp_avg, exp_avg_sq: Moments like it.
        grad: The gradient, like it.
        step: Number of this update, from 1; that of the whole table.
        lr, beta1, beta2, eps, weight_decay, decoupled, maximize: As in ``torch.optim.Adam`` and
            ``AdamW``.
        finite: 0-d bool; where it is False, nothing changes. Default: True.
    """
    if not table.numel():
        return
    rows, device = len(table), table.device
    width = table.numel() // rows
    block = min(1024, triton.next_power_of_2(width))
    constants = step_constants(beta1, beta2, eps, weight_decay, decoupled, maximize)
    with on_device(table):
        _adam_rows_kernel[(rows,)](
            *(table, exp_avg, exp_avg_sq, grad, number(device, lr), number(device, step)),
            *(finite, width),
            BLOCK=block,
            num_warps=max(1, min(4, block // 64)),
            enable_fp_fusion=False,
            **constants,
        )
