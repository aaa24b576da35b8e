"""The passes of :mod:`hypermask_fast.head_ops` in PyTorch, a tile of rows of A at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

# On a CPU the tiles of A, m, v and the gradient share a cache; a GPU wants few launches instead.
_TILE_BYTES = {"cpu": 1 << 21, "cuda": 1 << 26}


class AdamStep(NamedTuple):
    """The scalars of one Adam step; ``scale`` multiplies the gradient, ``decay`` the parameter."""

    scale: float
    decay: float
    l2: float
    lerp: float
    beta2: float
    root_correction2: float
    eps: float
    step_size: float


class Moments(NamedTuple):
    """Adam's running means of the gradient and of its square."""

    exp_avg: Tensor
    exp_avg_sq: Tensor


def _tiles(weight: Tensor) -> Iterator[slice]:
    rows, width = weight.shape
    size = _TILE_BYTES.get(weight.device.type, _TILE_BYTES["cuda"])
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
    if adam.decay != 1:
        p.mul_(adam.decay)
    exp_avg.lerp_(grad, adam.lerp)
    exp_avg_sq.mul_(adam.beta2).addcmul_(grad, grad, value=1 - adam.beta2)
    denominator = torch.sqrt(exp_avg_sq, out=grad).div_(adam.root_correction2).add_(adam.eps)
    p.addcdiv_(exp_avg, denominator, value=-adam.step_size)
    if stored[0].dtype != p.dtype:
        stored[0].copy_(exp_avg)
        stored[1].copy_(exp_avg_sq)


def _tile_logits(weight: Tensor, bias: Tensor, hidden: Tensor, rows: slice) -> Tensor:
    """Return (k, rows); every pass forms its logits by this call, for equal bits."""
    return torch.addmm(bias[rows], hidden, weight[rows].t())


def logits_tiles(weight: Tensor, bias: Tensor, hidden: Tensor, out: Tensor) -> None:
    """Write hidden A^T + b to ``out`` (k, N)."""
    for rows in _tiles(weight):
        out[:, rows] = _tile_logits(weight, bias, hidden, rows)


def update_tiles(
    weight: Tensor,
    dz: Tensor,
    hidden: Tensor | None = None,
    *,
    bias: Tensor | None = None,
    targets: Tensor | None = None,
    coefficient: float = 0.0,
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
        targets: (k - r, N).
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
            factors = _tile_logits(weight, bias, hidden, rows)
            earlier = factors[given:].sub_(targets[:, rows])
            regularizer += earlier.to(torch.float64).square().sum()
            earlier.mul_(coefficient)
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
