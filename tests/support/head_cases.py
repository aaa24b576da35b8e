"""A head with its moments, and a step of it by ours and by torch.optim."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hypermask_fast.head import passes
from hypermask_fast.head.adam import AdamOptions
from hypermask_fast.head.types import Head, HeadGrads, HeadStep, Kept, Moments

ADAM = {"lr": 1e-2, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.0}
PLAIN: dict[str, Any] = {**ADAM, "decoupled": False, "step": 3}


def tensors(head: Head) -> tuple[Tensor, ...]:
    """A, b, and the moments of each."""
    assert head.bias is not None
    assert head.moments is not None
    assert head.bias_moments is not None
    return head.weight, head.bias, *head.moments, *head.bias_moments


def head_of(parts: Sequence[Tensor]) -> Head:
    """The reverse of :func:`tensors`."""
    weight, bias, m, v, bias_m, bias_v = parts
    return Head(weight, bias, Moments(m, v), Moments(bias_m, bias_v))


def copied(head: Head, dtype: torch.dtype | None = None) -> Head:
    return head_of([tensor.clone().to(dtype or tensor.dtype) for tensor in tensors(head)])


def make_head(rows: int, width: int, dtype: torch.dtype = torch.float64) -> Head:
    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=dtype)

    moments = (draw(rows, width), draw(rows, width) ** 2, draw(rows), draw(rows) ** 2)
    return head_of((draw(rows, width) * 0.2, draw(rows), *moments))


def options_of(**options: Any) -> AdamOptions:
    return AdamOptions(**{**PLAIN, **options})


def step(
    head: Head, dz: Tensor, hidden: Tensor, kept: Kept, coefficient: Any, **options: Any
) -> HeadGrads:
    adam = options_of(**options)
    return passes.step_rows(HeadStep(head, dz[None], hidden, kept, coefficient, adam))


def adam_rows(head: Head, dz: Tensor, hidden: Tensor, **options: Any) -> None:
    passes.adam_rows(HeadStep(head, dz, hidden, adam=options_of(**options)))


def torch_step(
    head: Head, dz: Tensor, hidden: Tensor, targets: Tensor, coefficient: float, **options: Any
) -> tuple[Tensor, Tensor]:
    """The same step by autograd and torch.optim, in place on ``head``."""
    chosen = {**PLAIN, **options}
    hidden = hidden.clone().requires_grad_()
    weight, bias = (torch.nn.Parameter(tensor) for tensor in tensors(head)[:2])
    z = hidden @ weight.t() + bias
    residuals = z[1:] - targets
    (z[0] @ dz + coefficient / 2 * residuals.square().sum()).backward()
    kind = torch.optim.AdamW if chosen["decoupled"] else torch.optim.Adam
    optimizer = kind(
        [weight, bias],
        lr=chosen["lr"],
        betas=(chosen["beta1"], chosen["beta2"]),
        eps=chosen["eps"],
        weight_decay=chosen["weight_decay"],
        maximize=chosen.get("maximize", False),
        foreach=False,
    )
    for parameter, moments in ((weight, head.moments), (bias, head.bias_moments)):
        assert moments is not None
        assert parameter.grad is not None
        parameter.grad *= chosen.get("grad_scale", 1.0)
        optimizer.state[parameter] = {
            "step": torch.tensor(chosen["step"] - 1.0),
            "exp_avg": moments[0],
            "exp_avg_sq": moments[1],
        }
    optimizer.step()
    assert hidden.grad is not None
    return hidden.grad, residuals.detach().double().square().sum()
