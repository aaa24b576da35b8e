"""Batch norm over the rows of all processes, in one that has them all."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hypermask_fast.methods.sharing import Share
from hypermask_fast.training.distributed.batch_norm import WholeBatchNorm


def whole(world: int, rows: int) -> WholeBatchNorm:
    processes: Any = SimpleNamespace(world=world, gathered=lambda value: [value])
    return WholeBatchNorm(processes, Share(slice(0, rows), rows, list))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_outputs_have_the_type_of_the_input(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 3, 4, 4).to(dtype)
    norms = [nn.BatchNorm2d(3) for _ in range(2)]  # of float32, as autocast leaves them
    with whole(2, 8):
        found = norms[0](x)
    expected = norms[1](x)
    assert found.dtype == expected.dtype == dtype
    # Both round what float32 gives: half a unit in the last place each.
    torch.testing.assert_close(found, expected, rtol=torch.finfo(dtype).eps, atol=1e-6)
    torch.testing.assert_close(norms[0].running_var, norms[1].running_var, rtol=1e-5, atol=1e-6)


def test_one_process_alone_has_pytorchs_own() -> None:
    with whole(1, 1), pytest.raises(ValueError, match="more than 1 value per channel"):
        F.batch_norm(torch.ones(1, 3), torch.zeros(3), torch.ones(3), training=True)
