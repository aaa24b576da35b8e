"""Adam from the factors of a gradient, against torch.optim in float64."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.adam_cases import head_bounds, make_head, torch_step
from tests.support.head_cases import PLAIN
from tests.support.kernel_checks import assert_as_exact, error, poisoned

pytest.importorskip("triton")

from hypermask_fast.kernels import tuning
from hypermask_fast.kernels.head import adam as factored_adam


@pytest.fixture(autouse=True)
def _no_stale_memory() -> Iterator[None]:
    with poisoned():
        yield


def kernel_step(head: list[Tensor], dz: Tensor, hidden: Tensor, **options: Any) -> None:
    scalars = factored_adam.adam_scalars(dz.device, **{**PLAIN, **options})
    factored_adam.factored_adam(
        *(head[0], *head[2:4], dz, hidden, scalars),
        bias=head[1],
        bias_exp_avg=head[4],
        bias_exp_avg_sq=head[5],
    )


def assert_step(head: list[Tensor], dz: Tensor, hidden: Tensor, **options: Any) -> None:
    exact = torch_step(head, dz, hidden, torch.float64, **options)
    bounds = head_bounds(head, exact, dz, hidden, dz.double().abs(), 0, **options)
    dtypes = [tensor.dtype for tensor in head]
    kernel_step(head, dz, hidden, **options)
    for found, double, bound, dtype in zip(head, exact, bounds, dtypes, strict=True):
        assert_as_exact(found, double, bound, dtype)


@pytest.mark.parametrize(
    ("rows", "width", "count"),
    [
        pytest.param(1, 1, 1, id="1x1-r1"),
        pytest.param(7, 3, 2, id="7x3-r2"),
        pytest.param(70, 25, 5, id="70x25-r5"),
        pytest.param(70, 100, 10, id="70x100-r10"),
        pytest.param(33, 300, 16, id="33x300-r16"),
        pytest.param(33, 100, 17, id="33x100-r17"),
        pytest.param(40, 131, 70, id="40x131-r70"),
    ],
)
@pytest.mark.parametrize("moments", [torch.float32, torch.bfloat16], ids=str)
def test_step(
    device: torch.device, rows: int, width: int, count: int, moments: torch.dtype
) -> None:
    head = make_head(rows, width, device, moments)
    hidden = torch.randn(width, count, device=device).t()
    assert_step(head, torch.randn(count, rows, device=device), hidden)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"weight_decay": 0.1}, id="coupled"),
        pytest.param({"weight_decay": 0.1, "decoupled": True}, id="decoupled"),
        pytest.param({"weight_decay": 0.1, "maximize": True, "grad_scale": 0.125}, id="maximize"),
        pytest.param({"beta1": 0.0, "beta2": 0.0, "step": 1}, id="no-memory"),
        pytest.param({"beta1": 0.3, "step": 1}, id="short-memory"),
        pytest.param({"lr": 0.0}, id="no-rate"),
        pytest.param({"step": 10**7, "eps": 1e-3}, id="late"),
    ],
)
def test_options(device: torch.device, options: dict[str, Any]) -> None:
    head = make_head(20, 9, device)
    dz, hidden = torch.randn(3, 20, device=device), torch.randn(3, 9, device=device)
    assert_step(head, dz, hidden, **options)


@pytest.mark.parametrize("kind", factored_adam.CONFIGS)
def test_every_configuration(device: torch.device, kind: str) -> None:
    count = 3 if kind == "sums" else 20
    for config in factored_adam.CONFIGS[kind]:
        head = make_head(70, 150, device)
        dz, hidden = torch.randn(count, 70, device=device), torch.randn(count, 150, device=device)
        with tuning.forced(f"factored_adam_{kind}", config):
            assert_step(head, dz, hidden)


def test_numbers_and_tensors_mean_the_same(device: torch.device) -> None:
    numbers = {**PLAIN, "weight_decay": 0.1, "decoupled": True, "grad_scale": 3.0}
    expected = factored_adam.adam_scalars(device, **numbers)
    tensors = {
        "lr": torch.tensor(PLAIN["lr"], dtype=torch.float64, device=device),
        "step": torch.tensor(3.0, device=device),
        "grad_scale": torch.tensor([3.0], device=device),
        "finite": torch.tensor(True, device=device),
    }
    assert torch.equal(factored_adam.adam_scalars(device, **{**numbers, **tensors}), expected)
    root = (1 - 0.99**3) ** 0.5
    truth = [3.0, 1 - 1e-3, 0.0, 0.1, 0.99, 0.01, 1e-8 * root, 1e-2 * root / (1 - 0.9**3), 0.0]
    torch.testing.assert_close(
        expected.double().cpu(), torch.tensor(truth, dtype=torch.float64), rtol=1e-7, atol=0
    )


def test_skipped_step_changes_nothing(device: torch.device) -> None:
    head = make_head(20, 9, device)
    before = [tensor.clone() for tensor in head]
    dz = torch.full((2, 20), torch.nan, device=device)
    hidden = torch.ones(2, 9, device=device)
    # Before the first step that is taken the count is 0.
    step = torch.zeros((), device=device)
    kernel_step(head, dz, hidden, step=step, finite=torch.tensor(False, device=device))
    assert all(map(torch.equal, head, before))


def test_only_the_weight_may_be_updated(device: torch.device) -> None:
    head = make_head(20, 9, device)
    dz, hidden = torch.randn(2, 20, device=device), torch.randn(2, 9, device=device)
    exact = torch_step(head, dz, hidden, torch.float64)
    bounds = head_bounds(head, exact, dz, hidden, dz.double().abs(), 0)
    scalars = factored_adam.adam_scalars(device, **PLAIN)
    bias = head[1].clone()
    factored_adam.factored_adam(head[0], *head[2:4], dz, hidden, scalars)
    assert_as_exact(head[0], exact[0], bounds[0])
    assert torch.equal(head[1], bias)


def test_rows_of_factors_lie_far_apart(device: torch.device) -> None:
    """More than 2^31 elements, of memory that is never touched between them."""
    head = make_head(5, 4, device)
    near = [tensor.clone() for tensor in head]
    dz = torch.empty_strided((2, 5), (2**31 + 16, 1), device=device).normal_()
    hidden = torch.randn(2, 4, device=device)
    kernel_step(head, dz, hidden)
    kernel_step(near, dz.clone(memory_format=torch.contiguous_format), hidden)
    assert all(map(torch.equal, head, near))


def test_no_rows(device: torch.device) -> None:
    head = make_head(0, 4, device)
    kernel_step(head, torch.randn(2, 0, device=device), torch.randn(2, 4, device=device))
    assert head[0].shape == (0, 4)


def test_fifty_steps_are_as_exact_as_torch(device: torch.device) -> None:
    start = make_head(24, 30, device)
    for tensor in start[2:]:
        tensor.zero_()
    head = [tensor.clone() for tensor in start]
    plain, exact = start, start
    for step in range(1, 51):
        dz, hidden = torch.randn(4, 24, device=device), torch.randn(4, 30, device=device)
        kernel_step(head, dz, hidden, step=step)
        plain = torch_step(plain, dz, hidden, torch.float32, step=step)
        exact = torch_step(exact, dz, hidden, torch.float64, step=step)
    for found, single, double in zip(head, plain, exact, strict=True):
        assert error(found, double) <= 2 * error(single, double)
