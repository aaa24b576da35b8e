"""Tensors in float64, and the mask in numpy, for tests of the reference."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

EPS = {dtype: torch.finfo(dtype).eps for dtype in (torch.float64, torch.float32)}
LOW = (torch.float32, torch.bfloat16, torch.float16)


def double(*shape: int, grad: bool = True) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=grad)


def away_from_zero(*shape: int) -> Tensor:
    """Logits whose size is in [0.2, 1.2]: no kink of |tanh| within reach of a finite difference."""
    size = torch.rand(*shape, dtype=torch.float64) + 0.2
    return (size * torch.randn(*shape).sign()).requires_grad_()


def threshold_between(logits: Tensor, share: float = 0.4) -> Tensor:
    """A threshold midway between two neighbouring mask values."""
    values = logits.detach().tanh().abs().flatten().sort().values
    index = int(share * (len(values) - 1))
    return (values[index] + values[index + 1]) / 2


def numpy_mask(logits: Tensor, p: float = 0.0) -> np.ndarray:
    mask = np.abs(np.tanh(logits.detach().double().numpy()))
    return np.where(mask >= np.percentile(mask, p), mask, 0.0)
