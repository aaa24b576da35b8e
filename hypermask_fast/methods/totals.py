"""A batch's loss and what a method adds to it: on a GPU one launch in each direction."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hypermask_fast.backends.choice import uses_kernels
from hypermask_fast.modes import needs_operators


def _on_gpu(loss: Tensor) -> bool:
    return loss.is_cuda and loss.dtype == torch.float32 and uses_kernels("total", loss)


def total_of(task: Tensor, terms: tuple[Tensor, Tensor], factors: tuple[float, float]) -> Tensor:
    """Return ``task + factors[0] * terms[0] + factors[1] * terms[1]``, 0-d.

    Args:
        task: The batch's loss, 0-d.
        terms: Two regularizers, 0-d.
        factors: A number each.
    """
    alike = all(term.dtype == task.dtype and term.device == task.device for term in terms)
    if alike and not task.dim() and _on_gpu(task):
        return _Total.apply(task, *terms, factors)
    return task + factors[0] * terms[0] + factors[1] * terms[1]


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, task: Tensor, first: Tensor, second: Tensor, factors: tuple[float, float]
    ) -> Tensor:
        from hypermask_fast.kernels.losses import total

        ctx.factors = factors
        return total(task, (first, second), factors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        from hypermask_fast.kernels.losses import term_gradients

        (grad,) = grads
        if needs_operators(grad):
            return grad, ctx.factors[0] * grad, ctx.factors[1] * grad, None
        return grad, *term_gradients(grad, ctx.factors).unbind(), None
