"""What FactoredAdam does on CUDA by kernels of its own: tables, and how an update begins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.autograd.graph import increment_version

from hypermask_fast.backends.choice import uses_kernels
from hypermask_fast.head.types import HeadStep
from hypermask_fast.optim.factored_grad import FactoredGrad
from hypermask_fast.optim.groups import adam_options
from hypermask_fast.optim.in_backward import Verdict
from hypermask_fast.optim.loaded import MOMENTS

if TYPE_CHECKING:
    from hypermask_fast.kernels.head.begin import Begun


def _runs(p: Tensor) -> bool:
    return p.is_cuda and uses_kernels("adam_table", p)


def takes_table(p: Tensor, group: dict[str, Any]) -> bool:
    """Return whether the kernel is to step a table, of which rows without a gradient stay."""
    lr = group["lr"]
    on_it = not isinstance(lr, Tensor) or lr.device == p.device
    return on_it and p.is_contiguous() and _runs(p)


def step_table(
    p: Tensor, state: dict[str, Tensor], group: dict[str, Any], verdict: Verdict | None
) -> None:
    """Step the rows of a table that have a gradient; its step was counted."""
    from hypermask_fast.kernels.optim.rows import adam_rows

    assert p.grad is not None
    grad = p.grad.to_dense() if isinstance(p.grad, FactoredGrad) else p.grad
    first, second = (state[name].to(p.dtype).contiguous() for name in MOMENTS)
    options = adam_options(p, group, state["step"], None if verdict is None else verdict.finite)
    numbers = options._asdict()
    del numbers["grad_scale"], numbers["scalars"]
    adam_rows(p, first, second, grad.contiguous(), **numbers)
    increment_version([p, first, second])
    for name, moment in zip(MOMENTS, (first, second), strict=True):
        if moment is not state[name]:
            state[name].copy_(moment)


def begin(
    step: HeadStep,
    group: dict[str, Any],
    steps: Sequence[Tensor],
    factor: float,
    flags: Tensor | None,
) -> Begun:
    """Begin the update of a head; see :func:`hypermask_fast.kernels.head.begin.begin`.

    Args:
        step: The update.
        group: That of the weight.
        steps: The counts of the parameters that are updated, the weight's first.
        factor, flags: As in ``FactoredAdam.update_in_backward``.
    """
    from hypermask_fast.kernels.finite import flags_of
    from hypermask_fast.kernels.head.begin import begin as kernel

    options = adam_options(step.head.weight, group, steps[0], None)
    names = ("lr", "beta1", "beta2", "eps", "weight_decay", "decoupled", "maximize")
    begun = kernel(
        flags_of(step.dz.contiguous()) if flags is None else flags,
        steps,
        coefficient=step.coefficient,
        factor=factor,
        **{name: getattr(options, name) for name in names},
    )
    increment_version(list(steps))
    return begun
