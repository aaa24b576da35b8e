"""The scalars of an Adam step, on the host or on the device."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class AdamOptions(NamedTuple):
    """Hyperparameters of one Adam step, as in ``torch.optim.Adam``.

    Attributes:
        lr: Learning rate, a number or a 0-d tensor.
        beta1, beta2, eps: Of Adam.
        weight_decay: Its factor; 0 for none.
        decoupled: Decay as AdamW does, not through the gradient.
        step: Number of this update, from 1; a number, or a 0-d tensor that nothing reads back.
        grad_scale: Multiplies the gradient of A and b, not the returned hidden gradient. Default 1.
        maximize: Ascend instead. Default False.
        finite: 0-d bool tensor; False leaves parameters and moments as they are. Default: True.
        scalars: The same numbers as a kernel reads them, where one made them. Default: none.
    """

    lr: float | Tensor
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    decoupled: bool
    step: float | Tensor
    grad_scale: float = 1.0
    maximize: bool = False
    finite: Tensor | None = None
    scalars: Tensor | None = None


class AdamStep(NamedTuple):
    """What an update multiplies and adds, numbers or 0-d tensors.

    ``scale`` multiplies the gradient and ``decay`` the parameter. The moments move by ``lerp`` and
    ``lerp_square`` towards the gradient and its square. ``eps`` and ``step_size`` are multiplied
    by the root of the second moment's bias correction, in place of dividing that moment.
    """

    scale: float
    decay: float | Tensor
    l2: float
    lerp: float | Tensor
    lerp_square: float | Tensor
    eps: float | Tensor
    step_size: float | Tensor


def adam_step(options: AdamOptions, dtype: torch.dtype) -> AdamStep:
    """Return the scalars of a step of parameters of ``dtype``; tensors give float64 tensors.

    Raises:
        ValueError: The step is a number below 1.
    """
    step, lr, finite = options.step, options.lr, options.finite
    if isinstance(step, Tensor):
        # A step that is not taken does not count, and the first may not be.
        step = step.double().clamp_min(1)
    elif step < 1:
        raise ValueError(f"step is {step}; count the first update as 1")
    root = (1 - options.beta2**step) ** 0.5
    decay = lr * options.weight_decay if options.decoupled else 0.0
    scalars = AdamStep(
        scale=-options.grad_scale if options.maximize else options.grad_scale,
        decay=1 - decay,
        l2=0.0 if options.decoupled else options.weight_decay,
        lerp=1 - options.beta1,
        lerp_square=1 - options.beta2,
        eps=options.eps * root,
        step_size=lr * root / (1 - options.beta1**step),
    )
    if finite is None:
        return scalars
    taken = finite.double()
    return scalars._replace(
        decay=1 - decay * taken if options.decoupled else 1.0,
        # lerp_ takes a tensor of its own dtype only.
        lerp=(scalars.lerp * taken).to(dtype),
        lerp_square=(scalars.lerp_square * taken).to(dtype),
        # Not 0, which would divide 0.
        eps=scalars.eps + (1 - taken),
        step_size=scalars.step_size * taken,
    )
