"""The head with the output regularizer against a frozen copy of itself, in autograd."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from hypermask_fast import reference
from hypermask_fast.backends.choice import backend, requested
from hypermask_fast.backends.precision import full_precision
from hypermask_fast.head import passes
from hypermask_fast.head.checks import check, check_frozen, check_weight
from hypermask_fast.head.frozen import (
    empty_products,
    frozen_tiles,
    head_factors,
    quadratic,
    task_rows,
)
from hypermask_fast.head.types import FrozenHead, Head
from hypermask_fast.modes import gradients_by_operators, is_followed, needs_operators


def _by_operators(
    weight: Tensor, bias: Tensor, hidden: Tensor, frozen: FrozenHead
) -> tuple[Tensor, Tensor]:
    """As :func:`frozen_logits`, with the logits of all tasks."""
    with full_precision(weight.device):
        logits = reference.mask_logits(weight, bias, hidden)
        kept = reference.mask_logits(frozen.weight, frozen.bias, frozen.hidden)
        return logits[0], reference.output_regularizer(logits[1:], kept)


class _FrozenLogits(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, bias: Tensor, hidden: Tensor, frozen: FrozenHead
    ) -> tuple[Tensor, Tensor]:
        q, products = task_rows(hidden[1:], frozen), empty_products(weight)
        frozen_tiles(Head(weight, bias), frozen, products=products)
        squares, hidden_grad = quadratic(q, products, frozen)
        ctx.frozen, ctx.q, ctx.hidden_grad = frozen, q, hidden_grad
        ctx.save_for_backward(weight, bias, hidden)
        ctx.backend = requested()
        logits = passes.logits(Head(weight, bias), hidden[:1])
        return logits[0], (squares / len(q)).to(hidden.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        weight, bias, hidden = ctx.saved_tensors
        if is_followed() or needs_operators(*grads):
            outputs = partial(_by_operators, frozen=ctx.frozen)
            return *gradients_by_operators(outputs, (weight, bias, hidden), grads), None
        dz, coefficient = grads[0].contiguous(), 2 * grads[1] / len(ctx.q)
        with backend(ctx.backend), full_precision(dz.device):
            head: tuple[Tensor, Tensor] | tuple[None, None] = (None, None)
            if ctx.needs_input_grad[0] or ctx.needs_input_grad[1]:
                head = torch.empty_like(weight), torch.empty_like(bias)
                factors = head_factors(ctx.q, coefficient, hidden[0])
                frozen_tiles(Head(weight, bias), ctx.frozen, dz=dz, factors=factors, grads=head)
            of_current = passes.hidden_grad(weight, dz[None])
            of_earlier = (coefficient * ctx.hidden_grad).to(weight.dtype)
        return *head, torch.cat((of_current, of_earlier)), None


def frozen_logits(
    weight: Tensor, bias: Tensor, hidden: Tensor, frozen: FrozenHead
) -> tuple[Tensor, Tensor]:
    """Return the current task's logits, and the output regularizer without the earlier ones'.

    The mean over earlier tasks of ``||z_j - z_j*||^2``, where z_j* is what ``frozen`` gives, is a
    quadratic form in A - A_old and in the change of the hidden rows, of a size that does not depend
    on the number of tasks. The gradient of A is dense. Where a second derivative is asked for, the
    logits of all tasks are formed.

    Args:
        weight, bias: A (N, H) and b (N,).
        hidden: (t + 1, H), the current task's row first.
        frozen: Of :func:`hypermask_fast.head.frozen.freeze`, with t hidden rows.

    Returns:
        logits (N,), and a 0-d tensor.

    Raises:
        ValueError: Shapes do not fit.
        TypeError: A is neither float32 nor float64.
    """
    check_weight(weight)
    with full_precision(weight.device):
        hidden = hidden.to(weight.dtype)
        check("hidden", hidden, ("t + 1", weight.shape[1]), weight)
        check_frozen(frozen, len(hidden) - 1, weight)
        if is_followed():
            return _by_operators(weight, bias, hidden, frozen)
        return _FrozenLogits.apply(weight, bias, hidden, frozen)
