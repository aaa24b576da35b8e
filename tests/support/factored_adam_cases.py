"""A model whose head has a factored gradient, beside one with a dense one."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from hypermask_fast.optim.factored_adam import FactoredAdam
from hypermask_fast.optim.factored_grad import FactoredGrad

N, H, R = 40, 12, 3
TORCH = {False: torch.optim.Adam, True: torch.optim.AdamW}


class Model:
    """A head whose gradient is factored or dense, and a small parameter."""

    def __init__(self, factored: bool, dtype: torch.dtype = torch.float64) -> None:
        generator = torch.Generator().manual_seed(0)
        self.factored, self.dtype = factored, dtype
        head = torch.randn(N, H, dtype=torch.float64, generator=generator)
        self.parameters = [nn.Parameter(t.to(dtype)) for t in (head, torch.ones(5))]

    def backward(self, step: int, rank: int = R, scale: float = 1.0) -> None:
        generator = torch.Generator().manual_seed(step)
        dz, hidden, other = (
            torch.randn(*shape, dtype=torch.float64, generator=generator).to(self.dtype)
            for shape in ((rank, N), (rank, H), (5,))
        )
        dz, other = scale * dz, scale * other
        grad = FactoredGrad(dz, hidden)
        self.parameters[0].grad = grad if self.factored else dz.t() @ hidden
        self.parameters[1].grad = other


def take_steps(
    model: Model, optimizer: torch.optim.Optimizer, steps: range = range(6), **options: Any
) -> None:
    for step in steps:
        model.backward(step, **options)
        optimizer.step()


def check(ours: Model, plain: Model) -> None:
    for a, b in zip(ours.parameters, plain.parameters, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def pair(**options: Any) -> tuple[Model, FactoredAdam, Model, torch.optim.Optimizer]:
    ours, plain = Model(True), Model(False)
    return (
        ours,
        FactoredAdam(ours.parameters, **options),
        plain,
        torch.optim.Adam(plain.parameters, **options),
    )
