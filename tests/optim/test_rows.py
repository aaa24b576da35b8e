"""Rows without a gradient stay where they are, with any optimizer."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from hypermask_fast.optim.factored_adam import FactoredAdam
from hypermask_fast.optim.rows import mark_table, rows_with_gradient

Make = Callable[..., torch.optim.Optimizer]
OPTIMIZERS = [
    pytest.param(torch.optim.SGD, {"momentum": 0.9, "weight_decay": 0.1}, id="sgd"),
    pytest.param(torch.optim.SGD, {"momentum": 0.9, "nesterov": True}, id="nesterov"),
    pytest.param(torch.optim.RMSprop, {"momentum": 0.9, "weight_decay": 0.1}, id="rmsprop"),
    pytest.param(torch.optim.Adam, {"weight_decay": 0.1, "amsgrad": True}, id="adam"),
    pytest.param(torch.optim.AdamW, {"weight_decay": 0.1}, id="adamw"),
    pytest.param(torch.optim.Adagrad, {"weight_decay": 0.1}, id="adagrad"),
    pytest.param(torch.optim.Adadelta, {"weight_decay": 0.1}, id="adadelta"),
    pytest.param(torch.optim.NAdam, {"weight_decay": 0.1}, id="nadam"),
    pytest.param(torch.optim.RAdam, {"weight_decay": 0.1}, id="radam"),
    pytest.param(torch.optim.ASGD, {"weight_decay": 0.1}, id="asgd"),
    pytest.param(torch.optim.Rprop, {}, id="rprop"),
    pytest.param(FactoredAdam, {"weight_decay": 0.1}, id="factored"),
    pytest.param(
        FactoredAdam, {"weight_decay": 0.1, "decoupled_weight_decay": True}, id="factored-adamw"
    ),
    pytest.param(torch.optim.Adamax, {"weight_decay": 0.1}, id="adamax"),
]


def steps(optimizer: torch.optim.Optimizer, table: nn.Parameter, rows: list[list[int]]) -> None:
    for chosen in rows:
        grad = torch.zeros_like(table)
        grad[chosen] = 1.0 + torch.arange(len(chosen), dtype=table.dtype)[:, None]
        table.grad = grad
        optimizer.step()


@pytest.mark.parametrize(("make", "options"), OPTIMIZERS)
def test_a_row_moves_as_it_would_alone(make: Make, options: dict[str, Any]) -> None:
    """A row is stepped where it has a gradient, as if the table had no other steps for it."""
    start = torch.randn(4, 3, dtype=torch.float64)
    table = nn.Parameter(start.clone())
    optimizer = make([table], lr=0.1, **options)
    mark_table(table)
    steps(optimizer, table, [[0], [0], [0]])
    alone = nn.Parameter(start[:1].clone())
    steps(make([alone], lr=0.1, **options), alone, [[0], [0], [0]])
    assert torch.equal(table[1:], start[1:])
    torch.testing.assert_close(table[:1], alone, rtol=1e-14, atol=0)
    for name, value in optimizer.state[table].items():
        if value.shape == table.shape:
            first = torch.full_like(value, 0.1 if name == "step_size" else 0.0)
            assert torch.equal(value[1:], first[1:])
    # By now the first rows have momentum, and stay where they are without a gradient.
    before = table.detach().clone()
    steps(optimizer, table, [[3]])
    assert torch.equal(table[:3], before[:3])
    assert not torch.equal(table[3], before[3])


def test_a_table_without_a_gradient_is_left_alone() -> None:
    table = nn.Parameter(torch.ones(2, 2))
    optimizer = torch.optim.SGD([table], lr=1.0, weight_decay=0.5)
    mark_table(table)
    optimizer.step()
    assert torch.equal(table, torch.ones(2, 2))


def test_rows_are_held_where_nothing_else_is_imported() -> None:
    program = """
import torch
from hypermask_fast import FactoredAdam
table = torch.nn.Parameter(torch.ones(2, 2))
group = {"params": [table], "row_sparse": True}
optimizer = torch.optim.SGD([group], lr=1.0, weight_decay=0.5)
table.grad = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
optimizer.step()
assert table.tolist() == [[1.0, 1.0], [-0.5, 0.5]], table
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_nan_is_a_gradient() -> None:
    grad = torch.zeros(3, 2, 2)
    grad[1, 0, 1] = torch.nan
    assert rows_with_gradient(grad).flatten().tolist() == [False, True, False]
