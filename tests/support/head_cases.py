"""A head with its moments, and a step of it by ours and by torch.optim."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from hypermask_fast.head import passes

ADAM = {"lr": 1e-2, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.0}
PLAIN: dict[str, Any] = {**ADAM, "decoupled": False, "step": 3}


class Head(NamedTuple):
    weight: Tensor
    bias: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    bias_exp_avg: Tensor
    bias_exp_avg_sq: Tensor

    def copy(self, dtype: torch.dtype | None = None) -> Head:
        return Head(*(tensor.clone().to(dtype or tensor.dtype) for tensor in self))


def make_head(rows: int, width: int, dtype: torch.dtype = torch.float64) -> Head:
    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=dtype)

    moments = (draw(rows, width), draw(rows, width) ** 2, draw(rows), draw(rows) ** 2)
    return Head(draw(rows, width) * 0.2, draw(rows), *moments)


def step(head: Head, dz: Tensor, hidden: Tensor, targets: Tensor, **options: Any) -> Any:
    return passes.step_rows(*head, dz, hidden, targets, **{**PLAIN, **options})


def torch_step(
    head: Head, dz: Tensor, hidden: Tensor, targets: Tensor, coefficient: float, **options: Any
) -> tuple[Tensor, Tensor]:
    """The same step by autograd and torch.optim, in place on ``head``."""
    chosen = {**PLAIN, **options}
    hidden = hidden.clone().requires_grad_()
    weight, bias = (torch.nn.Parameter(tensor) for tensor in (head.weight, head.bias))
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
    for parameter, moments in ((weight, head[2:4]), (bias, head[4:])):
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
