"""Tables with a row for each task: in any optimizer's step, rows without a gradient stay put."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from hypermask_fast.tables import pad_rows

_MARK = "_rows_are_of_tasks"
# State that does not begin as 0, and the option of a group that it begins as.
_BEGINS_AS = {"step_size": "lr", "sum": "initial_accumulator_value"}


def mark_table(table: Tensor) -> None:
    """Let no step of any optimizer of PyTorch move rows of a parameter that have no gradient.

    A row whose gradient is exactly zero moves neither by momentum nor by weight decay, and its
    state stays as it is. A step costs a copy of the table and of its state. deepcopy loses the
    mark, so a module marks its table where it takes rows of it: :func:`take_rows`.
    """
    setattr(table, _MARK, True)


def take_rows(table: Tensor, rows: Any) -> Tensor:
    """Return ``table[rows]``, and mark a table that is a parameter; see :func:`mark_table`."""
    if isinstance(table, nn.Parameter):
        mark_table(table)
    return table[rows]


def rows_with_gradient(grad: Tensor) -> Tensor:
    """Return bool (rows, 1, ...). NaN counts as a gradient."""
    moved = grad.to_dense().ne(0).reshape(len(grad), -1).any(1)
    return moved.reshape(-1, *[1] * (grad.dim() - 1))


class _Held:
    """What a table was before a step, with its state."""

    def __init__(self, table: Tensor, group: dict[str, Any], states: dict[Any, Any]) -> None:
        self.table, self.group, self.states = table, group, states
        self.moved: Tensor | None = None
        self.before = table.clone()
        state = states.get(table, {})
        for key, value in state.items():
            if self._has_rows(value) and 1 < len(value) < len(table):
                # The table grew since the last step.
                state[key] = padded = pad_rows(value, table)
                padded[len(value) :] = self._first(key)
        self.state_before = {k: v.clone() for k, v in state.items() if self._is_of_rows(v)}

    def _has_rows(self, value: Any) -> bool:
        return isinstance(value, Tensor) and 0 < value.dim() == self.table.dim()

    def _is_of_rows(self, value: Any) -> bool:
        return self._has_rows(value) and len(value) == len(self.table)

    def _first(self, key: str) -> Any:
        return self.group.get(_BEGINS_AS.get(key, ""), 0)

    def see(self) -> None:
        """Let the rows move that have a gradient now."""
        if self.table.grad is not None:
            rows = rows_with_gradient(self.table.grad)
            self.moved = rows if self.moved is None else self.moved | rows

    def put_back(self) -> None:
        """Restore the rows without a gradient; state that the step made is as new there."""
        none = self.before.new_zeros((), dtype=torch.bool)
        moved = none if self.moved is None else self.moved
        self.table.copy_(torch.where(moved, self.table, self.before))
        for key, value in self.states.get(self.table, {}).items():
            if self._is_of_rows(value):
                before = self.state_before.get(key)
                value.copy_(
                    torch.where(moved, value, self._first(key) if before is None else before)
                )


# A step may call another of the same optimizer, a subclass's that of its base.
_steps: WeakKeyDictionary[Optimizer, list[list[_Held]]] = WeakKeyDictionary()


def _watched(closure: Callable[[], Any], held: list[_Held]) -> Callable[[], Any]:
    """Return a closure that also notes which rows have a gradient after it."""

    @wraps(closure)
    def evaluate() -> Any:
        loss = closure()
        with torch.no_grad():
            for each in held:
                each.see()
        return loss

    return evaluate


@torch.no_grad()
def _before_step(optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
    tables = [
        (p, group)
        for group in optimizer.param_groups
        for p in group["params"]
        if hasattr(p, _MARK) or group.get("row_sparse")
    ]
    if not tables:
        return None
    closure = args[1] if len(args) > 1 else kwargs.get("closure")
    waits = callable(closure)
    held = [_Held(p, group, optimizer.state) for p, group in tables if waits or p.grad is not None]
    _steps.setdefault(optimizer, []).append(held)
    if not waits:
        for each in held:
            each.see()
        return None
    watched = _watched(closure, held)
    if len(args) > 1:
        return (args[0], watched, *args[2:]), kwargs
    return args, {**kwargs, "closure": watched}


@torch.no_grad()
def _after_step(optimizer: Optimizer, *_: Any) -> None:
    steps = _steps.get(optimizer)
    if steps:
        for each in steps.pop():
            each.put_back()


register_optimizer_step_pre_hook(_before_step)
register_optimizer_step_post_hook(_after_step)
