"""A gradient as factors, and the matrix that it stands for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hypermask_fast.optim.factored_grad import FactoredGrad

N, H, R = 40, 12, 3


def factors(
    rank: int = R, seed: int = 1, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(rank, N, dtype=dtype, generator=generator),
        torch.randn(rank, H, dtype=dtype, generator=generator),
    )


def pair(rank: int = R, seed: int = 1) -> tuple[FactoredGrad, Tensor]:
    dz, hidden = factors(rank, seed)
    return FactoredGrad(dz, hidden), torch.einsum("rn,rh->nh", dz, hidden)


def check(grad: Any, expected: Tensor, factored: bool = True) -> FactoredGrad:
    assert isinstance(grad, FactoredGrad)
    assert grad.is_factored is factored
    torch.testing.assert_close(grad.to_dense(), expected)
    return grad


def parameter(grad: Tensor) -> nn.Parameter:
    p = nn.Parameter(torch.zeros(grad.shape, dtype=grad.dtype))
    p.grad = grad
    return p
