"""Sums of a few 0-d losses in one launch each: a total with its factors, and what completes it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from hypermask_fast.kernels.device import on_device


@triton.jit(do_not_specialize=["first_factor", "second_factor"])
def _total_kernel(
    task_ptr, first_ptr, second_ptr, out_ptr, first_factor, second_factor, GRADIENTS: tl.constexpr
):
    """The total; or of its gradient, in the place of the task's loss, those of the terms (2,)."""
    task = tl.load(task_ptr)
    if GRADIENTS:
        tl.store(out_ptr, task * first_factor)
        tl.store(out_ptr + 1, task * second_factor)
    else:
        total = task + tl.load(first_ptr) * first_factor
        tl.store(out_ptr, total + tl.load(second_ptr) * second_factor)


@triton.jit(do_not_specialize=["tasks", "factor"])
def _complete_kernel(squares_ptr, output_reg_ptr, losses, tasks, factor):
    output_reg = (tl.load(squares_ptr).to(tl.float64) / tasks).to(tl.float32)
    tl.store(output_reg_ptr, output_reg)
    for i in tl.static_range(len(losses)):
        tl.store(losses[i], tl.load(losses[i]) + output_reg * factor)


def total(task: Tensor, terms: tuple[Tensor, Tensor], factors: tuple[float, float]) -> Tensor:
    """Return a task's loss plus two terms times their factors, 0-d float32 like all of them."""
    out = torch.empty_like(task)
    with on_device(task):
        _total_kernel[(1,)](
            *(task, *terms, out, *map(float, factors)),
            GRADIENTS=False,
            num_warps=1,
            enable_fp_fusion=False,
        )
    return out


def term_gradients(grad: Tensor, factors: tuple[float, float]) -> Tensor:
    """Return the gradients of the terms of :func:`total`, float32 (2,), of that of the total."""
    out = grad.new_empty(2)
    with on_device(grad):
        _total_kernel[(1,)](
            *(grad, None, None, out, *map(float, factors)), GRADIENTS=True, num_warps=1
        )
    return out


def complete(
    squares: Tensor, tasks: int, output_reg: Tensor, losses: Sequence[Tensor], factor: float
) -> None:
    """Write a regularizer, and add it times a factor to losses that lack it.

    Args:
        squares: 0-d float64, the sum that it is the mean of over a number of tasks.
        tasks: That number.
        output_reg: 0-d float32, written.
        losses: 0-d float32, added to.
        factor: Of the regularizer in each.
    """
    with on_device(squares):
        _complete_kernel[(1,)](
            *(squares, output_reg, tuple(losses), tasks, float(factor)),
            num_warps=1,
            enable_fp_fusion=False,
        )
