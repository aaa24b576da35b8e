"""What begins an update of a head in one launch: is its gradient finite, and the step's numbers.

Of flags of a gradient's blocks come: whether the step is taken, counted where it is in a step count
of each parameter; the table of numbers in :mod:`hypermask_fast.kernels.head.adam`; and the factor
of a residual in its gradient, ``coefficient * factor``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from hypermask_fast.kernels.device import on_device
from hypermask_fast.kernels.head.adam import SCALARS
from hypermask_fast.kernels.head.numbers import number, step_constants, store_scalars


@triton.jit(do_not_specialize=["count", "factor"])
def _begin_kernel(
    flags_ptr,
    steps,
    lr_ptr,
    coefficient_ptr,
    finite_ptr,
    numbers_ptr,
    count,
    factor,
    SCALARS: tl.constexpr,
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
    """One program; the step's number is that of the first count."""
    place = tl.arange(0, BLOCK)
    lowest = tl.full((BLOCK,), 1, tl.int32)
    for first in range(0, count, BLOCK):
        flag = tl.load(flags_ptr + first + place, mask=first + place < count, other=1)
        lowest = tl.minimum(lowest, flag)
    finite = tl.min(lowest, 0)
    taken = finite.to(tl.float32)
    for i in tl.static_range(len(steps)):
        number = tl.load(steps[i]) + taken
        tl.store(steps[i], number)
        if i == 0:
            step = number.to(tl.float64)
    lr = tl.load(lr_ptr).to(tl.float64)
    store_scalars(
        *(numbers_ptr, lr, step, tl.full((), 1.0, tl.float64)),
        *(BETA1, BETA2, LOG_BETA1, LOG_BETA2, EPS, L2, DECAY, SIGN),
    )
    tl.store(numbers_ptr + 8, 1 - taken)
    tl.store(numbers_ptr + SCALARS, taken)
    tl.store(numbers_ptr + SCALARS + 1, 1 - taken)
    tl.store(numbers_ptr + SCALARS + 2, tl.load(coefficient_ptr).to(tl.float32) * factor)
    tl.store(finite_ptr, finite != 0)


class Begun(NamedTuple):
    """What :func:`begin` returns, all on the device.

    Attributes:
        finite: 0-d bool, whether the step is taken.
        taken, skipped: 0-d float32, 1 where it is, and where it is not.
        scalars: (SCALARS,) float32, the step's numbers.
        coefficient: 0-d float32.
    """

    finite: Tensor
    taken: Tensor
    skipped: Tensor
    scalars: Tensor
    coefficient: Tensor


def begin(
    flags: Tensor,
    steps: Sequence[Tensor],
    *,
    lr: float | Tensor,
    coefficient: float | Tensor,
    factor: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
    maximize: bool,
) -> Begun:
    """Begin an update, without waiting for the device.

    Args:
        flags: Of :mod:`hypermask_fast.kernels.finite`, of the gradient.
        steps: 0-d float32 counts of the parameters' steps, to which the one that begins is added
            where it is taken; the first has the step's number. Different tensors, one at least.
        lr: The learning rate.
        coefficient, factor: Whose product is the residuals' factor.
        beta1, beta2, eps, weight_decay, decoupled, maximize: As in ``torch.optim.Adam`` and
            ``AdamW``.
    """
    device = flags.device
    numbers = torch.empty(SCALARS + 3, device=device)
    finite = torch.empty((), dtype=torch.bool, device=device)
    constants = step_constants(beta1, beta2, eps, weight_decay, decoupled, maximize)
    with on_device(flags):
        _begin_kernel[(1,)](
            *(flags, tuple(steps), number(device, lr), number(device, coefficient)),
            *(finite, numbers, flags.numel(), float(factor)),
            SCALARS=SCALARS,
            BLOCK=1024,
            # Who loads a count is who stores it.
            num_warps=1,
            **constants,
        )
    scalars, *rest = numbers.split([SCALARS, 1, 1, 1])
    taken, skipped, residual = (each.view(()) for each in rest)
    return Begun(finite, taken, skipped, scalars, residual)
