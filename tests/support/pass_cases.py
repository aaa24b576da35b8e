"""Sizes of a head, and the bound on the rounding of a pass over it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hypermask_fast.native import library

SIZES = [
    pytest.param(1, 1, 1, id="1x1-r1"),
    pytest.param(7, 3, 2, id="7x3-r2"),
    pytest.param(1003, 25, 1, id="1003x25-r1"),
    pytest.param(1003, 100, 10, id="1003x100-r10"),
    pytest.param(33, 131, 20, id="33x131-r20"),
    pytest.param(36, 16, 5, id="36x16-r5"),
    pytest.param(2500, 48, 3, id="2500x48-r3"),
]
BOTH = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def need_library() -> None:
    """Skip where nothing can be compiled; a compiler that makes no working library is a failure."""
    if library.load() is None:
        status = library.status()
        assert "no C++ compiler" in status or "HYPERMASK_FAST_NATIVE=0" in status, status
        pytest.skip(status)


def dot_bound(left: Tensor, right: Tensor, terms: int) -> Tensor:
    """The textbook bound on the rounding of ``left @ right``, whatever the order of its sums."""
    return (terms + 2) * torch.finfo(left.dtype).eps * (left.abs() @ right.abs())
