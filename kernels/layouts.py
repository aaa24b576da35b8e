"""How the results of operators lie in memory: alike on every device, and for shapes alone."""

from __future__ import annotations

import torch
from torch import Tensor


def in_channels_last(x: Tensor) -> bool:
    """Return whether the channels of a pixel of (N, C, H, W) are neighbours."""
    return x.stride(1) == 1 and x.shape[2] * x.shape[3] > 1


def format_of(x: Tensor) -> torch.memory_format:
    """Return the memory format of a convolution of x, and of the gradient of x."""
    return torch.channels_last if in_channels_last(x) else torch.contiguous_format


def with_strides_of(value: Tensor, like: Tensor) -> Tensor:
    """Return a value with the strides of another tensor, where those are dense."""
    wanted = torch.empty_like(like, dtype=value.dtype)
    return value if value.stride() == wanted.stride() else wanted.copy_(value)
