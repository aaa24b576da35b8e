"""The passes of :mod:`hypermask_fast.head.passes` on CUDA: what the kernels take, and how."""

from __future__ import annotations

import torch
from torch import Tensor

from hypermask_fast.head.adam import AdamOptions
from hypermask_fast.head.tiles import Moments
from hypermask_fast.kernels import ops


def _scalars(device: torch.device, options: AdamOptions) -> Tensor:
    from hypermask_fast.kernels.head.adam import adam_scalars

    return adam_scalars(device, **options)


def logits(weight: Tensor, bias: Tensor, hidden: Tensor, out: Tensor) -> None:
    """Write hidden A^T + b to ``out`` (k, N).

    The first embedding is read by itself, as the current one of a step is, and the others as
    :func:`step_rows` forms them: a residual of a head that did not change is exactly 0.
    """
    from hypermask_fast.kernels.head.logits import mask_logits
    from hypermask_fast.kernels.head.step import earlier_logits

    mask_logits(weight, bias, hidden[:1], out=out[:1])
    if len(hidden) > 1:
        out[1:] = earlier_logits(weight, bias, hidden[1:])


def hidden_grad(weight: Tensor, dz: Tensor) -> Tensor:
    """Return dz A."""
    return ops.hidden_grad(weight, dz.contiguous())


def adam_rows(
    weight: Tensor, moments: Moments, dz: Tensor, hidden: Tensor, options: AdamOptions
) -> None:
    """Apply an Adam step with the gradient dz^T hidden."""
    from hypermask_fast.kernels.head.adam import factored_adam

    factored_adam(weight, *moments, dz, hidden, _scalars(weight.device, options))


def step_rows(
    weight: Tensor,
    bias: Tensor,
    moments: Moments,
    bias_moments: Moments,
    dz: Tensor,
    hidden: Tensor,
    targets: Tensor,
    coefficient: float | Tensor,
    options: AdamOptions,
) -> tuple[Tensor, Tensor]:
    """Do the rest of a training step in one pass; see :func:`hypermask_fast.head.passes.step_rows`."""
    from hypermask_fast.kernels.head.step import step_rows as kernel

    if not isinstance(coefficient, Tensor):
        coefficient = torch.full((), coefficient, device=weight.device)
    return kernel(
        *(weight, bias, *moments, *bias_moments),
        *(dz.contiguous(), hidden, targets),
        coefficient=coefficient.float(),
        scalars=_scalars(weight.device, options),
    )
