"""The passes over a head in PyTorch, a tile of rows of A at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from hypermask_fast.backends.precision import full_precision
from hypermask_fast.head.adam import AdamStep
from hypermask_fast.head.types import Head, HeadGrads, HeadStep, KeptSample, Moments
from hypermask_fast.reference import output_residuals

# On a CPU the tiles of A, m, v and the gradient share a cache; a GPU wants few launches instead.
_TILE_BYTES = {"cpu": 1 << 21, "cuda": 1 << 26}


def tiles_of(weight: Tensor) -> Iterator[slice]:
    """Return the rows of A, tile by tile."""
    rows, width = weight.shape
    size = _TILE_BYTES.get(weight.device.type, _TILE_BYTES["cuda"])
    if weight.is_meta:
        # A plan of a head that fits nowhere must not take minutes.
        size = max(size, weight.nbytes // 256)
    # A multiple of 32 rows keeps every tile on a cache line, for any width.
    step = max(32, size // (width * weight.element_size()) // 32 * 32)
    return (slice(low, min(low + step, rows)) for low in range(0, rows, step))


def adam_tile(weight: Tensor, moments: Moments, grad: Tensor, rows: slice, adam: AdamStep) -> None:
    """Apply torch's single-tensor Adam to rows of ``weight``; overwrites ``grad``."""
    p, stored = weight[rows], [moment[rows] for moment in moments]
    exp_avg, exp_avg_sq = (moment.to(p.dtype) for moment in stored)
    if adam.scale != 1:
        grad.mul_(adam.scale)
    if adam.l2:
        grad.add_(p, alpha=adam.l2)
    if isinstance(adam.decay, Tensor) or adam.decay != 1:
        p.mul_(adam.decay)
    exp_avg.lerp_(grad, adam.lerp)
    exp_avg_sq.lerp_(grad.square_(), adam.lerp_square)
    denominator = torch.sqrt(exp_avg_sq, out=grad).add_(adam.eps)
    # Its factor cannot be a tensor; the step size can be 0.
    p.addcdiv_(exp_avg, denominator.div_(adam.step_size), value=-1)
    if stored[0].dtype != p.dtype:
        stored[0].copy_(exp_avg)
        stored[1].copy_(exp_avg_sq)


def _tile_logits(head: Head, hidden: Tensor, rows: slice, sample: KeptSample | None) -> Tensor:
    """Return (k, rows); every pass forms its logits by this call, for equal bits.

    The bits of a row depend on its place and on the size of the batch, so samples are taken after
    the product.
    """
    assert head.bias is not None
    batch = hidden if sample is None else sample.hidden
    z = torch.addmm(head.bias[rows], batch, head.weight[rows].t())
    return z if sample is None else z[sample.rows]


def logits(head: Head, hidden: Tensor, out: Tensor, sample: KeptSample | None = None) -> None:
    """Write hidden A^T + b to ``out`` (k, N), with the bits of the batch of ``sample``."""
    with full_precision(out.device):
        for rows in tiles_of(head.weight):
            out[:, rows] = _tile_logits(head, hidden, rows, sample)


def hidden_grad(weight: Tensor, dz: Tensor) -> Tensor:
    """Return dz A, (r, H)."""
    sums = weight.new_zeros(len(dz), weight.shape[1], dtype=torch.float64)
    with full_precision(weight.device):
        for rows in tiles_of(weight):
            sums += dz[:, rows] @ weight[rows]
    return sums.to(weight.dtype)


def adam_rows(step: HeadStep) -> None:
    """Apply an Adam step with the gradient dz^T hidden to A and its moments."""
    weight, moments = step.head.weight, step.head.moments
    assert moments is not None
    adam, dz = step.scalars(), step.taken_dz
    with full_precision(weight.device):
        for rows in tiles_of(weight):
            adam_tile(weight, moments, dz[:, rows].t() @ step.hidden, rows, adam)


def step_rows(step: HeadStep) -> HeadGrads:
    """Form residuals and gradients, and apply an Adam step to A and b, in one pass."""
    weight, bias, moments, bias_moments = step.head
    assert bias is not None
    assert moments is not None
    adam, dz = step.scalars(), step.taken_dz
    kept, given = step.kept_logits, len(dz)
    squares = torch.zeros((), dtype=torch.float64, device=weight.device)
    sums = weight.new_zeros(step.hidden.shape, dtype=torch.float64)
    bias_grad = torch.empty_like(bias) if step.bias_grad is None else step.bias_grad
    with full_precision(weight.device):
        for rows in tiles_of(weight):
            factors = dz[:, rows]
            if kept is not None and len(kept):
                factors = _tile_logits(step.head, step.hidden, rows, step.sample)
                residuals = output_residuals(factors[given:], kept[:, rows])
                squares += residuals.to(torch.float64).square().sum()
                torch.mul(residuals, step.coefficient, out=factors[given:])
                factors[:given] = dz[:, rows]
            sums += factors @ weight[rows]
            adam_tile(weight, moments, factors.t() @ step.hidden, rows, adam)
            torch.sum(factors, 0, out=bias_grad[rows])
        if bias_moments is not None:
            adam_tile(bias, bias_moments, bias_grad, slice(None), adam)
    return HeadGrads(sums.to(weight.dtype), squares)
