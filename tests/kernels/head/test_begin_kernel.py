"""What begins an update of a head, against what is computed step by step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.kernel_checks import poisoned

pytest.importorskip("triton")

from hypermask_fast.kernels import finite, tuning
from hypermask_fast.kernels.head.adam import adam_scalars
from hypermask_fast.kernels.head.begin import Begun, begin

OPTIONS: dict[str, Any] = {"lr": 0.01, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8}
OPTIONS |= {"weight_decay": 0.1, "decoupled": True, "maximize": True}


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, None, 3.4e38])
@pytest.mark.parametrize("place", [0, 31, 32, 99])
def test_one_entry_that_is_not_finite_is_found(
    value: float | None, place: int, device: torch.device
) -> None:
    values = torch.randn(100, device=device)
    if value is not None:
        values[place] = value
    with tuning.forced("finite", {"BLOCK": 32, "num_warps": 1}), poisoned():
        flags = finite.flags_of(values)
    assert flags.shape == (4,)
    wrong = [place // 32] if value is not None and not abs(value) < torch.inf else []
    assert (flags == 0).nonzero().flatten().tolist() == wrong


def begun(flags: Tensor, steps: list[Tensor]) -> Begun:
    with poisoned():
        device = flags.device
        coefficient = torch.tensor(0.7, device=device)
        return begin(flags, steps, coefficient=coefficient, factor=2 / 3, **OPTIONS)


@pytest.mark.parametrize("blocks", [1, 1024, 1025, 3000])
@pytest.mark.parametrize("taken", [False, True])
def test_numbers_are_those_of_the_step_that_is_counted(
    blocks: int, taken: bool, device: torch.device
) -> None:
    flags = torch.ones(blocks, dtype=torch.int32, device=device)
    flags[-1] = taken
    steps = [torch.tensor(count, device=device) for count in (4.0, 9.0)]
    found = begun(flags, steps)
    assert [float(step) for step in steps] == [4.0 + taken, 9.0 + taken]
    assert (bool(found.finite), float(found.taken)) == (taken, taken)
    assert float(found.skipped) == 1 - taken
    expected = adam_scalars(device, step=4.0 + taken, finite=found.finite, **OPTIONS)
    assert torch.equal(found.scalars, expected)
    assert found.coefficient == torch.tensor(0.7) * torch.tensor(2 / 3)


def test_a_first_step_that_is_not_taken_has_numbers(device: torch.device) -> None:
    found = begun(
        torch.zeros(1, dtype=torch.int32, device=device), [torch.zeros((), device=device)]
    )
    assert found.scalars.isfinite().all()


def test_flags_that_are_noted_hold_until_the_numbers_change() -> None:
    values, flags = torch.zeros(3), torch.ones(1)
    assert finite.known(values) is None
    finite.remember(values, flags)
    assert finite.known(values) is flags
    values += 1
    assert finite.known(values) is None
