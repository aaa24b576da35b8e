"""A head as the kernels take it, and an Adam step of it by torch.optim."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tests.support.head_cases import PLAIN
from tests.support.kernel_checks import rounding_bound


def make_head(
    rows: int, width: int, device: torch.device, moments: torch.dtype = torch.float32
) -> list[Tensor]:
    """A, b, and the moments of each."""

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device)

    shapes = ((rows, width), (rows,))
    parameters = [draw(*shape) * 0.2 for shape in shapes]
    return parameters + [x.to(moments) for s in shapes for x in (draw(*s), draw(*s).square())]


def torch_step(
    head: list[Tensor], dz: Tensor, hidden: Tensor, dtype: torch.dtype, **options: Any
) -> list[Tensor]:
    """The same step by torch.optim in ``dtype``, on copies."""
    chosen = {**PLAIN, **options}
    head = [tensor.to(dtype, copy=True) for tensor in head]
    dz, hidden = dz.to(dtype), hidden.to(dtype)
    kind = torch.optim.AdamW if chosen["decoupled"] else torch.optim.Adam
    parameters = [torch.nn.Parameter(tensor) for tensor in head[:2]]
    optimizer = kind(
        parameters,
        lr=float(chosen["lr"]),
        betas=(chosen["beta1"], chosen["beta2"]),
        eps=chosen["eps"],
        weight_decay=chosen["weight_decay"],
        maximize=chosen.get("maximize", False),
        foreach=False,
    )
    grads = (dz.t() @ hidden, dz.sum(0))
    for parameter, grad, m, v in zip(parameters, grads, head[2::2], head[3::2], strict=True):
        parameter.grad = grad * float(chosen.get("grad_scale", 1.0))
        step = torch.tensor(float(chosen["step"]) - 1)
        optimizer.state[parameter] = {"step": step, "exp_avg": m, "exp_avg_sq": v}
    optimizer.step()
    return [parameter.detach() for parameter in parameters] + head[2:]


def adam_bounds(
    before: Sequence[Tensor],
    exact: Sequence[Tensor],
    grad: Tensor,
    grad_bound: Tensor,
    size: Tensor,
    options: Mapping[str, Any],
) -> list[Tensor]:
    """How far a step of Adam in float32 may be, to first order.

    Args:
        before: A parameter and its moments.
        exact: The same after a step in float64.
        grad: Its gradient, before the options change it.
        grad_bound: How far that may be.
        size: The sum of the magnitudes of its terms.
        options: As of ``torch.optim``, with grad_scale and step.

    Returns:
        Bounds of the parameter and its moments.
    """
    eps = torch.finfo(torch.float32).eps
    beta1, beta2, decay = options["beta1"], options["beta2"], options["weight_decay"]
    old, m0, v0 = (t.double().abs() for t in before)
    coupled = 0.0 if options["decoupled"] else decay
    scale = options.get("grad_scale", 1.0)
    size = scale * size + coupled * old
    off = scale * grad_bound + 2 * eps * size
    g = scale * grad.double().abs() + coupled * old
    # Each moment is two products and their sum, of numbers that are rounded themselves.
    of_m = (1 - beta1) * off + 4 * eps * (m0 + (1 - beta1) * size)
    of_v = (1 - beta2) * (2 * g + off) * off + 4 * eps * (beta2 * v0 + (1 - beta2) * g * g)
    parameter, m, v = (t.double() for t in exact)
    correction = (1 - beta2 ** options["step"]) ** 0.5
    root, least = v.sqrt(), (v - of_v).clamp_min(0).sqrt()
    denominator = root + options["eps"] * correction
    lowest = (1 - 2 * eps) * (least + options["eps"] * correction)
    ratio = m.abs() / denominator
    of_ratio = (of_m + ratio * (denominator - lowest)) / lowest + 2 * eps * ratio
    rate = float(options["lr"]) * correction / (1 - beta1 ** options["step"])
    of_parameter = rate * (of_ratio + 2 * eps * ratio) + 3 * eps * (old + parameter.abs())
    return [of_parameter, of_m, of_v]


def head_bounds(
    before: Sequence[Tensor],
    exact: Sequence[Tensor],
    dz: Tensor,
    hidden: Tensor,
    size: Tensor,
    terms: int,
    **options: Any,
) -> list[Tensor]:
    """Bounds of a head's six tensors, for factors dz of which ``terms`` may be sums of ``size``."""
    chosen = {**PLAIN, **options}
    dz, hidden = dz.double(), hidden.double()
    found = []
    for kind, (grad, size_of) in enumerate(
        ((dz.t() @ hidden, size.t() @ hidden.abs()), (dz.sum(0), size.sum(0)))
    ):
        places = (kind, 2 + 2 * kind, 3 + 2 * kind)
        state, after = [before[i] for i in places], [exact[i] for i in places]
        bound = rounding_bound(size_of, len(dz) + terms)
        found.append(adam_bounds(state, after, grad, bound, size_of, chosen))
    (a, m, v), (b, bm, bv) = found
    return [a, b, m, v, bm, bv]
