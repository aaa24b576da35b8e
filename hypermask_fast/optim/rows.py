"""Tables with a row for each task: rows without a gradient stay where they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer


def rows_with_gradient(grad: Tensor) -> Tensor:
    """Return bool (rows, 1, ...). NaN counts as a gradient."""
    moved = grad.ne(0).reshape(len(grad), -1).any(1)
    return moved.reshape(-1, *[1] * (grad.dim() - 1))


class _Held:
    """What a table was before a step, with its state."""

    def __init__(self, table: Tensor, state: dict[str, Any]) -> None:
        assert table.grad is not None
        self.table, self.state = table, state
        self.moved = rows_with_gradient(table.grad)
        self.before = table.clone()
        self.state_before = {k: v.clone() for k, v in state.items() if self._is_of_rows(v)}

    def _is_of_rows(self, value: Any) -> bool:
        return isinstance(value, Tensor) and value.shape == self.table.shape

    def put_back(self) -> None:
        """Restore the rows without a gradient; state that the step made is 0 there."""
        self.table.copy_(torch.where(self.moved, self.table, self.before))
        for key, value in self.state.items():
            if self._is_of_rows(value):
                before = self.state_before.get(key, torch.zeros_like(value))
                value.copy_(torch.where(self.moved, value, before))


def hold_rows(optimizer: Optimizer, tables: Sequence[Tensor]) -> None:
    """Let rows with a gradient of exactly zero move neither by momentum nor by weight decay.

    For any optimizer of PyTorch; a :class:`~hypermask_fast.FactoredAdam` does so by itself where
    ``row_sparse`` is set. Costs a copy of the tables and their state in each step.

    Args:
        optimizer: Its steps are changed from now on.
        tables: Parameters of it.
    """
    held: list[_Held] = []

    @torch.no_grad()
    def before(*_: Any) -> None:
        held[:] = [_Held(p, optimizer.state[p]) for p in tables if p.grad is not None]

    @torch.no_grad()
    def after(*_: Any) -> None:
        for each in held:
            each.put_back()
        held.clear()

    optimizer.register_step_pre_hook(before)
    optimizer.register_step_post_hook(after)
