"""Logits, residual factors and hidden gradients of the head, against float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.support.kernel_checks import assert_as_exact, poisoned, rounding_bound

pytest.importorskip("triton")

from hypermask_fast.kernels import tuning
from hypermask_fast.kernels.head import hidden_grad as gradients
from hypermask_fast.kernels.head import logits as mask_logits
from hypermask_fast.kernels.head.adam import SCALARS

SIZES = [
    pytest.param(1, 1, 1, id="1x1-k1"),
    pytest.param(7, 3, 2, id="7x3-k2"),
    pytest.param(200, 25, 1, id="200x25-k1"),
    pytest.param(130, 100, 1, id="130x100-k1"),
    pytest.param(130, 100, 10, id="130x100-k10"),
    pytest.param(33, 300, 1, id="33x300-k1"),
    pytest.param(33, 300, 20, id="33x300-k20"),
    pytest.param(70, 16, 130, id="70x16-k130"),
]
NUMBERS = ("rows", "width", "count")


@pytest.fixture(autouse=True)
def _no_stale_memory() -> object:
    with poisoned():
        yield


def head(device: torch.device, rows: int, width: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """A and b at an address that is no multiple of 16 bytes, and rows of hidden apart."""
    weight = torch.randn(rows * width + 1, device=device)[1:].view(rows, width)
    bias = torch.randn(rows + 1, device=device)[1:]
    return weight, bias, torch.randn(width, count, device=device).t()


def exact_logits(weight: Tensor, bias: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """The logits in float64, and how far they may be."""
    a, b, h = weight.double(), bias.double(), hidden.double()
    size = h.abs() @ a.abs().t() + b.abs()
    return h @ a.t() + b, rounding_bound(size, weight.shape[1] + 1)


def exact_gradient(weight: Tensor, dz: Tensor) -> tuple[Tensor, Tensor]:
    """The hidden gradient in float64, and how far it may be."""
    a, d = weight.double(), dz.double()
    return d @ a, rounding_bound(d.abs() @ a.abs(), len(weight))


@pytest.mark.parametrize(NUMBERS, SIZES)
def test_logits(device: torch.device, rows: int, width: int, count: int) -> None:
    weight, bias, hidden = head(device, rows, width, count)
    found = mask_logits.mask_logits(weight, bias, hidden)
    assert_as_exact(found, *exact_logits(weight, bias, hidden))


@pytest.mark.parametrize(NUMBERS, SIZES)
def test_hidden_gradient(
    device: torch.device, monkeypatch: pytest.MonkeyPatch, rows: int, width: int, count: int
) -> None:
    monkeypatch.setattr(gradients, "_ROWS", 64)
    weight, _, _ = head(device, rows, width, count)
    dz = torch.randn(count, rows, device=device)
    found = gradients.hidden_grad(weight, dz)
    assert_as_exact(found, *exact_gradient(weight, dz))
    assert torch.equal(found, gradients.hidden_grad(weight, dz))


@pytest.mark.parametrize("count", [1, 3])
def test_gradient_of_a_sum_has_no_strides(device: torch.device, count: int) -> None:
    weight, _, _ = head(device, 40, 9, count)
    dz = torch.ones((), device=device).expand(count, 40)
    assert_as_exact(gradients.hidden_grad(weight, dz), *exact_gradient(weight, dz))


def far_rows(count: int, rows: int, device: torch.device) -> Tensor:
    """Rows more than 2^31 elements apart, of memory that is never touched between them."""
    return torch.empty_strided((count, rows), (2**31 + 16, 1), device=device).normal_()


def test_rows_of_logits_lie_far_apart(device: torch.device) -> None:
    weight, bias, hidden = head(device, 5, 4, 2)
    dz = far_rows(2, 5, device)
    near = dz.clone(memory_format=torch.contiguous_format)
    assert torch.equal(gradients.hidden_grad(weight, dz), gradients.hidden_grad(weight, near))
    found = mask_logits.mask_logits(weight, bias, hidden, out=dz)
    assert found is dz
    assert torch.equal(found, mask_logits.mask_logits(weight, bias, hidden))


@pytest.mark.parametrize(("rows", "count"), [(0, 1), (0, 3), (6, 0)])
def test_empty(device: torch.device, rows: int, count: int) -> None:
    weight, bias, hidden = head(device, rows, 4, count)
    assert mask_logits.mask_logits(weight, bias, hidden).shape == (count, rows)
    grad = gradients.hidden_grad(weight, torch.randn(count, rows, device=device))
    assert torch.equal(grad, torch.zeros(count, 4, device=device))


@pytest.mark.parametrize("kind", ["vector", "matrix16", "matrix128"])
def test_every_configuration_gives_the_same_logits(device: torch.device, kind: str) -> None:
    weight, bias, hidden = head(device, 70, 40, {"vector": 1, "matrix16": 5, "matrix128": 20}[kind])
    for config in mask_logits.CONFIGS[kind]:
        with tuning.forced(f"mask_logits_{kind}", config):
            found = mask_logits.mask_logits(weight, bias, hidden)
        assert_as_exact(found, *exact_logits(weight, bias, hidden))


def scalars(device: torch.device, skip: bool = False) -> Tensor:
    numbers = torch.zeros(SCALARS, device=device)
    numbers[-1] = float(skip)
    return numbers


@pytest.mark.parametrize("skip", [False, True], ids=["taken", "skipped"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_residual_factors(device: torch.device, dtype: torch.dtype, skip: bool) -> None:
    weight, bias, hidden = head(device, 130, 20, 19)
    z, bound = exact_logits(weight, bias, hidden[1:])
    targets = (z + torch.randn_like(z).sign() / 2).to(dtype)
    current = torch.randn(130, device=device)
    coefficient = torch.tensor([0.25], device=device)
    found, squares = mask_logits.residual_factors(
        *(weight, bias, torch.full_like(current, torch.nan) if skip else current, hidden, targets),
        coefficient=coefficient,
        scalars=scalars(device, skip),
    )
    exact = z - targets.double()
    assert torch.equal(found[0], torch.zeros_like(current) if skip else current)
    # The difference is rounded once more, relative to itself.
    bound += rounding_bound(exact.abs(), 0)
    assert_as_exact(found[1:], 0.25 * exact, 0.25 * bound)
    assert float(squares) == pytest.approx(float(exact.square().sum()), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("earlier", [1, 16, 140])
def test_unchanged_logits_leave_no_residual(
    device: torch.device, earlier: int, dtype: torch.dtype
) -> None:
    weight, bias, hidden = head(device, 70, 33, earlier + 1)
    targets = torch.empty(earlier, 70, dtype=dtype, device=device)
    mask_logits.target_logits(weight, bias, hidden[1:], targets)
    assert_as_exact(targets, *exact_logits(weight, bias, hidden[1:]), dtype)
    current = torch.randn(70, device=device)
    found, squares = mask_logits.residual_factors(
        *(weight, bias, current, hidden, targets),
        coefficient=torch.ones(1, device=device),
        scalars=scalars(device),
    )
    assert float(squares) == 0
    assert not found[1:].any()
