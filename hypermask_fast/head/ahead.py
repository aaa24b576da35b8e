"""The look-ahead of Adam, and steps of heads with it in PyTorch, where there is no native code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hypermask_fast.backends.precision import full_precision
from hypermask_fast.head.adam import AdamOptions
from hypermask_fast.head.tiles import adam_tile, tiles_of
from hypermask_fast.head.types import HeadGrads, HeadStep, KeptChunks
from hypermask_fast.reference import output_residuals


def shifted(p: Tensor, grad: Tensor, moments: Sequence[Tensor], options: AdamOptions) -> Tensor:
    """Return what an Adam step would nearly make of ``p``, which stays as it is.

    Epsilon is added to the root of the second moment before its bias is corrected, as in HNET's
    published code: ``p - lr sqrt(1 - beta2^n) / (1 - beta1^n) m / (sqrt(v) + eps)``.

    Args:
        p: A parameter, or rows of one.
        grad: Its gradient.
        moments: As they are before the step; none before the first.
        options: Of the step.
    """
    step = options.step.double() if isinstance(options.step, Tensor) else options.step
    size = options.lr * (1 - options.beta2**step) ** 0.5 / (1 - options.beta1**step)
    scale = -options.grad_scale if options.maximize else options.grad_scale
    grad = grad if scale == 1 else grad * scale
    if options.weight_decay and not options.decoupled:
        grad = grad.add(p, alpha=options.weight_decay)
    exp_avg, exp_avg_sq = grad * (1 - options.beta1), grad.square() * (1 - options.beta2)
    if moments:
        exp_avg.add_(moments[0].to(p.dtype), alpha=options.beta1)
        exp_avg_sq.add_(moments[1].to(p.dtype), alpha=options.beta2)
    change = exp_avg.div_(exp_avg_sq.sqrt_().add_(options.eps)).mul_(size)
    if options.weight_decay and options.decoupled:
        change.add_(p * (options.lr * options.weight_decay))
    return p - change


class _Block(NamedTuple):
    """Residuals of a tile, a view (t, ..., n), and the logits to keep that are subtracted there."""

    residuals: Tensor
    kept: Tensor


def _blocks(residuals: Tensor, kept: Tensor | KeptChunks, rows: slice, height: int) -> list[_Block]:
    """Return where logits are kept; residuals (k, n) of other entries of the tile become 0."""
    if isinstance(kept, Tensor):
        return [_Block(residuals, kept[:, rows])]
    size, start = kept.logits.shape[1], rows.start
    whole = size // height
    by_task = residuals.unflatten(0, (-1, kept.chunks))
    chunks = kept.logits[:, : whole * height].unflatten(1, (whole, height))
    blocks = [_Block(by_task[:, :whole], chunks[..., rows])]
    if whole < kept.chunks:
        end = max(start, min(rows.stop, size - whole * height))
        by_task[:, whole, end - start :] = 0
        last = kept.logits[:, whole * height + start : whole * height + end]
        blocks.append(_Block(by_task[:, whole, : end - start], last))
    return blocks


def _subtract_kept(
    residuals: Tensor, kept: Tensor | KeptChunks, rows: slice, height: int
) -> Tensor:
    """Make logits of a tile residuals, in place; return the sum of their squares, float64.

    Where a logit to keep is NaN, nothing is kept.
    """
    blocks = _blocks(residuals, kept, rows, height)
    for z, target in blocks:
        if target.dtype == z.dtype:
            z -= target
        else:
            z.copy_(output_residuals(z, target))
    # Of each embedding: BLAS would add more of them in float32.
    squares = torch.linalg.vecdot(residuals, residuals).sum(dtype=torch.float64)
    # On a CPU asking costs less than to look for NaN; a GPU would have to be waited for.
    if residuals.device.type != "cpu" or squares.isnan():
        for z, target in blocks:
            z.masked_fill_(target.isnan(), 0)
        squares = torch.linalg.vecdot(residuals, residuals).sum(dtype=torch.float64)
    return squares


def step_rows(step: HeadStep) -> HeadGrads:
    """Form residuals and gradients, and apply an Adam step to A and b, in one pass."""
    weight, bias, moments, bias_moments = step.head
    assert bias is not None
    assert moments is not None
    adam, dz, given = step.scalars(), step.taken_dz, len(step.dz)
    kept = step.kept if isinstance(step.kept, KeptChunks) else step.kept_logits
    current, earlier = step.hidden[:given], step.hidden[given:]
    squares = torch.zeros((), dtype=torch.float64, device=weight.device)
    sums = weight.new_zeros(step.hidden.shape, dtype=torch.float64)
    bias_grad = torch.empty_like(bias) if step.bias_grad is None else step.bias_grad
    first = given if step.looks_ahead else 0
    with full_precision(weight.device):
        for rows in tiles_of(weight):
            factors, a, b = dz[:, rows], weight[rows], bias[rows]
            if step.looks_ahead:
                assert bias_moments is not None
                of_rows, of_bias = ([m[rows] for m in both] for both in (moments, bias_moments))
                a = shifted(a, factors.t() @ current, of_rows, step.options)
                b = shifted(b, factors.sum(0), of_bias, step.options)
            if len(earlier):
                assert kept is not None
                given_dz, factors = factors, a.new_empty(len(step.hidden), len(b))
                factors[:given] = given_dz
                residuals = torch.addmm(b, earlier, a.t(), out=factors[given:])
                squares += _subtract_kept(residuals, kept, rows, len(bias))
                residuals *= step.coefficient
            sums[first:] += factors[first:] @ a
            adam_tile(weight, moments, factors.t() @ step.hidden, rows, adam)
            torch.sum(factors, 0, out=bias_grad[rows])
        if bias_moments is not None:
            adam_tile(bias, bias_moments, bias_grad, slice(None), adam)
    return HeadGrads(sums.to(weight.dtype), squares)
