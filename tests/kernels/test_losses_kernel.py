"""Totals of losses by kernels, with the bits of the operators."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hypermask_fast.methods import totals

pytest.importorskip("triton")

from hypermask_fast.kernels import losses

FACTORS = (0.1, 3e-4)


@pytest.fixture
def values(device: torch.device) -> list[Tensor]:
    return [(100 * torch.randn((), device=device)).requires_grad_() for _ in range(3)]


def test_a_total_and_its_gradients_have_the_bits_of_the_operators(
    values: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    results = []
    for on_gpu in (False, True):
        monkeypatch.setattr(totals, "_on_gpu", lambda _, on_gpu=on_gpu: on_gpu)
        task, *terms = values
        total = totals.total_of(task, (terms[0], terms[1]), FACTORS)
        results.append([total, *torch.autograd.grad(1.7 * total, values)])
    for found, expected in zip(results[1], results[0], strict=True):
        assert torch.equal(found, expected)
        assert found.shape == ()


def test_a_total_has_second_derivatives(
    values: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(totals, "_on_gpu", lambda _: True)

    def first(x: Tensor) -> Tensor:
        total = totals.total_of(x**3, (x**2, x), FACTORS)
        return torch.autograd.grad(total, x, create_graph=True)[0]

    x = torch.tensor(2.0, requires_grad=True)
    assert torch.autograd.grad(first(x), x)[0] == pytest.approx(6 * 2 + 2 * FACTORS[0])


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_regularizer_is_the_mean_of_its_sum_and_completes_losses(
    count: int, device: torch.device
) -> None:
    squares = torch.tensor(1234.56789, dtype=torch.float64, device=device)
    waiting = [torch.tensor(float(i), device=device) for i in range(count)]
    output_reg = torch.zeros((), device=device)
    losses.complete(squares, 7, output_reg, waiting, 0.3)
    assert torch.equal(output_reg, (squares / 7).float())
    for i, loss in enumerate(waiting):
        assert torch.equal(loss, i + output_reg * 0.3)


def test_other_numbers_are_left_to_the_operators() -> None:
    task, *terms = (torch.tensor(x, dtype=torch.float64) for x in (1.0, 2.0, 3.0))
    kept: Callable[..., Tensor] = totals.total_of
    assert kept(task, (terms[0], terms[1]), FACTORS) == 1 + 0.1 * 2 + 3e-4 * 3
