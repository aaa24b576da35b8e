"""The passes of :mod:`hypermask_fast.head.passes` in PyTorch, a tile of rows of A at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from hypermask_fast.head.adam import AdamStep
from hypermask_fast.reference import output_residuals

# On a CPU the tiles of A, m, v and the gradient share a cache; a GPU wants few launches instead.
_TILE_BYTES = {"cpu": 1 << 21, "cuda": 1 << 26}


class Moments(NamedTuple):
    """Adam's running means of the gradient and of its square."""

    exp_avg: Tensor
    exp_avg_sq: Tensor


class SampledTargets(NamedTuple):
    """Targets of some embeddings of a larger batch.

    Attributes:
        logits: (k, N), the logits to keep.
        hidden: (m, H), the whole batch.
        rows: int64 (k + 1,), the places in it of the current embedding and of those of ``logits``.
    """

    logits: Tensor
    hidden: Tensor
    rows: Tensor


def _tiles(weight: Tensor) -> Iterator[slice]:
    rows, width = weight.shape
    size = _TILE_BYTES.get(weight.device.type, _TILE_BYTES["cuda"])
    if weight.is_meta:
        # A plan of a head that fits nowhere must not take minutes.
        size = max(size, weight.nbytes // 256)
    # A multiple of 32 rows keeps every tile on a cache line, for any width.
    step = max(32, size // (width * weight.element_size()) // 32 * 32)
    return (slice(low, min(low + step, rows)) for low in range(0, rows, step))


def _adam(weight: Tensor, moments: Moments, grad: Tensor, rows: slice, adam: AdamStep) -> None:
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


def _tile_logits(
    weight: Tensor, bias: Tensor, hidden: Tensor, rows: slice, sampled: SampledTargets | None
) -> Tensor:
    """Return (k, rows); every pass forms its logits by this call, for equal bits.

    The bits of a row depend on its place and on the size of the batch, so samples are taken after
    the product.
    """
    batch = hidden if sampled is None else sampled.hidden
    z = torch.addmm(bias[rows], batch, weight[rows].t())
    return z if sampled is None else z[sampled.rows]


def logits_tiles(
    weight: Tensor, bias: Tensor, hidden: Tensor, out: Tensor, sampled: SampledTargets | None
) -> None:
    """Write hidden A^T + b to ``out`` (k, N)."""
    for rows in _tiles(weight):
        out[:, rows] = _tile_logits(weight, bias, hidden, rows, sampled)


def update_tiles(
    weight: Tensor,
    dz: Tensor,
    hidden: Tensor | None = None,
    *,
    bias: Tensor | None = None,
    targets: Tensor | None = None,
    sampled: SampledTargets | None = None,
    coefficient: float | Tensor = 0.0,
    adam: AdamStep | None = None,
    moments: Moments | None = None,
    bias_moments: Moments | None = None,
    hidden_grad: Tensor | None = None,
) -> Tensor:
    """Do in one pass what is asked for: residuals, the gradient to ``hidden``, Adam.

    Args:
        weight: A (N, H).
        dz: (r, N), the given gradients; those of ``hidden[r:]`` come from the residuals.
        hidden: (k, H).
        bias: b (N,), with ``targets`` or ``bias_moments``.
        targets: (k - r, N), of A's dtype or bfloat16.
        sampled: The batch that ``hidden`` was taken from, where that is a part of it.
        coefficient: Factor of a residual in its gradient.
        adam: With ``moments`` (and ``bias_moments``), updates A (and b).
        moments, bias_moments: As in Adam, like A and b.
        hidden_grad: float64 (k, H), zeros, receives the sum.

    Returns:
        0-d float64, the sum of the squared residuals.
    """
    regularizer = torch.zeros((), dtype=torch.float64, device=weight.device)
    given = len(dz)
    bias_grad = torch.empty_like(bias) if bias is not None and bias_moments else None
    for rows in _tiles(weight):
        factors = dz[:, rows]
        if targets is not None and len(targets):
            assert hidden is not None
            assert bias is not None
            factors = _tile_logits(weight, bias, hidden, rows, sampled)
            residuals = output_residuals(factors[given:], targets[:, rows])
            regularizer += residuals.to(torch.float64).square().sum()
            torch.mul(residuals, coefficient, out=factors[given:])
            factors[:given] = dz[:, rows]
        if hidden_grad is not None:
            hidden_grad += factors @ weight[rows]
        if adam and moments:
            assert hidden is not None
            _adam(weight, moments, factors.t() @ hidden, rows, adam)
        if bias_grad is not None:
            torch.sum(factors, 0, out=bias_grad[rows])
    if bias_grad is not None and adam and bias is not None and bias_moments:
        _adam(bias, bias_moments, bias_grad, slice(None), adam)
    return regularizer
