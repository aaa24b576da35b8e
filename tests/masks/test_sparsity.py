"""A sparsity is a percentage, as a number or as a 0-d tensor."""

from __future__ import annotations

import pytest
import torch

from hypermask_fast import MaskedLinear


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, 101.0])
def test_a_tensor_outside_the_range_is_refused(value: float) -> None:
    layer = MaskedLinear(4, 3)
    with (
        pytest.raises(ValueError, match=r"sparsity is .*; give a percentage"),
        layer.masked(torch.randn(3, 4), sparsity=torch.tensor(value)),
    ):
        pass
