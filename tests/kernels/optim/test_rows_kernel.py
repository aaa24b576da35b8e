"""Adam on tables whose rows without a gradient stay, against torch.optim in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from hypermask_fast.kernels.optim.rows import adam_rows

PLAIN = {"lr": 0.01, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0}
SHAPES = [(1, 1), (5,), (7, 3), (4, 130), (3, 2, 5), (2, 1500)]


def state(shape: tuple[int, ...], device: torch.device) -> list[Tensor]:
    table, first, second = (torch.randn(shape, device=device) for _ in range(3))
    return [table, first, second.square()]


def exact(tensors: list[Tensor], grad: Tensor, step: int, options: dict[str, Any]) -> list[Tensor]:
    """The step by torch.optim in float64; rows whose gradient is 0 as before."""
    table, *moments = (x.double() for x in tensors)
    kind = torch.optim.AdamW if options["decoupled"] else torch.optim.Adam
    parameter = torch.nn.Parameter(table.clone())
    optimizer = kind(
        [parameter],
        lr=float(options["lr"]),
        betas=(options["beta1"], options["beta2"]),
        eps=options["eps"],
        weight_decay=options["weight_decay"],
        maximize=options.get("maximize", False),
    )
    count = torch.tensor(float(step - 1))
    made = [x.clone() for x in moments]
    optimizer.state[parameter] = {"step": count, "exp_avg": made[0], "exp_avg_sq": made[1]}
    parameter.grad = grad.double()
    optimizer.step()
    moved = (grad != 0).flatten(1).any(1) if grad.dim() > 1 else grad != 0
    moved = moved.view(-1, *[1] * (grad.dim() - 1))
    pairs = zip((parameter.detach(), *made), (table, *moments), strict=True)
    return [torch.where(moved, new, old) for new, old in pairs]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"decoupled": False}, id="adam"),
        pytest.param({"decoupled": False, "weight_decay": 0.3, "maximize": True}, id="l2"),
        pytest.param({"decoupled": True, "weight_decay": 0.3}, id="adamw"),
    ],
)
def test_rows_with_a_gradient_take_the_step(
    shape: tuple[int, ...], options: dict[str, Any], device: torch.device
) -> None:
    chosen = {**PLAIN, **options}
    tensors = state(shape, device)
    grad = torch.randn(shape, device=device)
    if len(grad) > 1:
        grad[1::2] = 0
    expected = exact(tensors, grad, 3, chosen)
    before = [x.clone() for x in tensors]
    adam_rows(*tensors, grad, step=torch.tensor(3.0, device=device), **chosen)
    for found, right in zip(tensors, expected, strict=True):
        # Some ten roundings of terms of this size.
        torch.testing.assert_close(found.double(), right, rtol=2e-6, atol=2e-6)
    for found, old in zip(tensors, before, strict=True):
        assert torch.equal(found[1::2], old[1::2])


def test_not_a_number_is_a_gradient_and_one_entry_moves_its_row(device: torch.device) -> None:
    tensors = state((3, 40), device)
    before = [x.clone() for x in tensors]
    grad = torch.zeros(3, 40, device=device)
    grad[0, 7], grad[2, 39] = torch.nan, 1e-30
    adam_rows(*tensors, grad, step=1, decoupled=False, **PLAIN)
    assert tensors[0][0].isnan().nonzero().flatten().tolist() == [7]
    assert not torch.equal(tensors[1][2], before[1][2])
    for found, old in zip(tensors, before, strict=True):
        assert torch.equal(found[1], old[1])


@pytest.mark.parametrize("finite", [False, True])
def test_a_step_that_is_not_taken_changes_nothing(finite: bool, device: torch.device) -> None:
    tensors = state((3, 4), device)
    before = [x.clone() for x in tensors]
    flag = torch.tensor(finite, device=device)
    grad = torch.ones(3, 4, device=device)
    adam_rows(*tensors, grad, step=1, decoupled=False, finite=flag, **PLAIN)
    for found, old in zip(tensors, before, strict=True):
        assert torch.equal(found, old) is not finite
