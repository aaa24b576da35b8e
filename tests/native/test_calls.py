"""The gate where native passes take addresses."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import vmap

from hypermask_fast.native.calls import pointers
from hypermask_fast.optim.factored_grad import FactoredGrad


def _emptied() -> Tensor:
    tensor = torch.ones(4)
    tensor.untyped_storage().resize_(0)
    return tensor


WITHOUT_MEMORY: dict[str, Callable[[], Tensor]] = {
    "meta": lambda: torch.empty(4, device="meta"),
    "fake": lambda: FakeTensorMode().from_tensor(torch.ones(4)),
    "functional": lambda: torch._to_functional_tensor(torch.ones(4)),
    "zero": lambda: torch._efficientzerotensor(4),
    "freed": _emptied,
    "strides": lambda: torch.ones(4, 2)[:, 0],
    "negated": lambda: torch.ones(1, dtype=torch.complex64).conj().imag,
    "subclass": lambda: FactoredGrad(torch.ones(1, 2), torch.ones(1, 2)),
}


@pytest.mark.parametrize("kind", WITHOUT_MEMORY)
def test_what_is_no_contiguous_memory_is_refused(kind: str) -> None:
    with pytest.raises(RuntimeError, match=r"given a .* of shape \(.*\) on .*; use backend\('refe"):
        pointers([torch.ones(2), WITHOUT_MEMORY[kind]()])


def test_a_batch_of_a_transform_is_refused() -> None:
    def look(tensor: Tensor) -> Tensor:
        with pytest.raises(RuntimeError, match=r"of shape \(3,\) on cpu, which is not"):
            pointers([tensor])
        return tensor

    vmap(look)(torch.ones(2, 3))


def test_memory_has_its_address() -> None:
    tensor, parameter = torch.ones(3), torch.nn.Parameter(torch.ones(2))
    values = list(pointers([tensor, None, parameter, torch.ones(0)]))
    assert values[:3] == [tensor.data_ptr(), None, parameter.data_ptr()]
