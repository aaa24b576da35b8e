"""The passes over a float32 head on CUDA: the kernels' operators and launchers."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from hypermask_fast.backends.choice import uses_kernels
from hypermask_fast.head.adam import AdamOptions
from hypermask_fast.head.types import (
    Head,
    HeadGrads,
    HeadStep,
    KeptChunks,
    KeptSample,
    Moments,
)
from hypermask_fast.kernels import ops
from hypermask_fast.kernels.constants import constant
from hypermask_fast.reference import output_residuals


def takes(weight: Tensor) -> bool:
    """Return whether the kernels are to run the passes over this head."""
    rows, width = weight.shape
    return weight.is_cuda and uses_kernels("head", weight, rows=rows, width=width)


def _scalars(device: torch.device, options: AdamOptions) -> Tensor:
    from hypermask_fast.kernels.head.adam import adam_scalars

    if options.scalars is not None:
        return options.scalars
    numbers = options._asdict()
    del numbers["scalars"]
    return adam_scalars(device, **numbers)


def finite_flags(dz: Tensor) -> Tensor | None:
    """Return what the kernel that wrote dz noted, for whom looks whether it is finite."""
    from hypermask_fast.kernels.finite import known

    return known(dz)


def _runs(loss: Tensor) -> bool:
    return loss.is_cuda and uses_kernels("total", loss)


def completes(squares: Tensor, *losses: Tensor) -> bool:
    """Return whether the kernel is to write a regularizer and add it to losses."""
    alike = all(x.dtype == torch.float32 and x.device == squares.device for x in losses)
    return alike and _runs(losses[0])


def complete(
    squares: Tensor, tasks: int, output_reg: Tensor, losses: list[Tensor], factor: float
) -> None:
    """As :func:`hypermask_fast.kernels.losses.complete`."""
    from hypermask_fast.kernels.losses import complete as kernel

    kernel(squares, tasks, output_reg, losses, factor)
    increment_version([output_reg, *losses])


def logits(head: Head, hidden: Tensor, out: Tensor, sample: KeptSample | None = None) -> None:
    """Write hidden A^T + b to ``out`` (k, N).

    The first embedding is read by itself, as the current one of a step is, and the others as
    :func:`step_rows` forms them: a residual of a head that did not change is exactly 0.
    """
    from hypermask_fast.kernels.head.logits import mask_logits
    from hypermask_fast.kernels.head.step import earlier_logits

    assert sample is None
    assert head.bias is not None
    mask_logits(head.weight, head.bias, hidden[:1], out=out[:1])
    if len(hidden) > 1:
        out[1:] = earlier_logits(head.weight, head.bias, hidden[1:])


def hidden_grad(weight: Tensor, dz: Tensor) -> Tensor:
    """Return dz A, (r, H)."""
    return ops.hidden_grad(weight, dz)


def adam_rows(step: HeadStep) -> None:
    """Apply an Adam step with the gradient dz^T hidden to A and its moments."""
    from hypermask_fast.kernels.head.adam import factored_adam

    weight, moments = step.head.weight, step.head.moments
    assert moments is not None
    scalars = _scalars(weight.device, step.options)
    factored_adam(weight, *moments, step.dz, step.hidden, scalars)
    increment_version([weight, *moments])


def _form_bias_grad(step: HeadStep, out: Tensor) -> None:
    from hypermask_fast.kernels.head.step import earlier_logits

    weight, bias, *_ = step.head
    assert bias is not None
    torch.sum(step.taken_dz, 0, out=out)
    if step.kept_logits is not None and len(step.kept_logits):
        z = earlier_logits(weight, bias, step.hidden[len(step.dz) :])
        out += step.coefficient * output_residuals(z, step.kept_logits).sum(0)


def takes_ahead(step: HeadStep) -> bool:
    """Return whether the kernel is to run a step that looks ahead: of a full head, by its size."""
    weight, kept = step.head.weight, step.kept
    if len(step.dz) != 1 or isinstance(kept, KeptChunks) or not takes(weight):
        return False
    from hypermask_fast.kernels.head import ahead

    fits = ahead.takes(weight.shape[1], len(step.hidden) - 1)
    return fits and uses_kernels("step_ahead", weight)


def step_ahead(step: HeadStep) -> HeadGrads:
    """As :func:`step_rows`, for a step that looks ahead and that :func:`takes_ahead` takes."""
    from hypermask_fast.kernels.head.ahead import step_ahead as kernel

    weight, bias, moments, bias_moments = step.head
    assert bias is not None
    assert moments is not None
    assert bias_moments is not None
    hidden_grad, squares = kernel(
        *(weight, bias, *moments, *bias_moments, step.dz[0], step.hidden, _targets(step)),
        eps=step.options.eps,
        coefficient=_coefficient(step),
        scalars=_scalars(weight.device, step.options),
    )
    increment_version([weight, *moments, bias, *bias_moments])
    return HeadGrads(hidden_grad, squares)


def _targets(step: HeadStep) -> Tensor:
    weight, kept = step.head.weight, step.kept_logits
    return weight.new_empty(0, len(weight)) if kept is None else kept


def _coefficient(step: HeadStep) -> Tensor:
    given = step.coefficient
    return given.float() if isinstance(given, Tensor) else constant(given, step.head.weight.device)


def step_rows(step: HeadStep) -> HeadGrads:
    """Form residuals and gradients, and apply an Adam step to A and b, in one pass."""
    from hypermask_fast.kernels.head.step import step_rows as kernel

    weight, bias, moments, bias_moments = step.head
    assert bias is not None
    assert moments is not None
    if step.bias_grad is not None:
        _form_bias_grad(step, step.bias_grad)
        # The kernel steps a bias in any case: a copy.
        bias, bias_moments = bias.clone(), Moments(*torch.zeros_like(bias).expand(2, -1).clone())
    assert bias_moments is not None
    hidden_grad, squares = kernel(
        *(weight, bias, *moments, *bias_moments),
        *(step.dz[0], step.hidden, _targets(step)),
        coefficient=_coefficient(step),
        scalars=_scalars(weight.device, step.options),
    )
    increment_version([weight, *moments, bias, *bias_moments])
    return HeadGrads(hidden_grad, squares)
