"""A head as the kernels take it, and an Adam step of it by torch.optim."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.support.head_cases import PLAIN


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
