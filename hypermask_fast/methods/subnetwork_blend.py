"""A network's weights under a blend of packed masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hypermask_fast.masks.packed import dots, weighted_sum


def _blend(
    alpha: Tensor, rows: Mapping[int, Tensor], weights: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    factors = alpha.tolist()
    sizes = [w.numel() for w in weights]
    chosen = [factors[task] for task in rows]
    mask = weighted_sum([*rows.values()], chosen, sum(sizes), weights[0].dtype)
    parts = zip(mask.split(sizes), weights, strict=True)
    return tuple(part.view(w.shape).mul_(w) for part, w in parts)


class Blend(torch.autograd.Function):
    """``W * sum_j alpha_j M_j`` of packed masks, and its derivatives by alpha."""

    @staticmethod
    def forward(
        ctx: Any, alpha: Tensor, rows: Mapping[int, Tensor], *weights: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.rows = rows
        ctx.save_for_backward(alpha, *weights)
        ctx.save_for_forward(*weights)
        return _blend(alpha, rows, weights)

    @staticmethod
    def jvp(ctx: Any, of_alpha: Tensor, *_: Any) -> tuple[Tensor, ...]:
        return _blend(of_alpha, ctx.rows, ctx.saved_tensors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        alpha, *weights = ctx.saved_tensors
        sizes = [w.numel() for w in weights]
        values = weights[0].new_empty(sum(sizes))
        for part, grad, w in zip(values.split(sizes), grads, weights, strict=True):
            torch.mul(grad, w, out=part.view(w.shape))
        of_alpha = torch.zeros_like(alpha)
        of_alpha[list(ctx.rows)] = dots([*ctx.rows.values()], values).to(alpha)
        return of_alpha, None, *[None] * len(weights)
