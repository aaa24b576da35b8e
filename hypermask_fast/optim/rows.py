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


def is_table(p: Tensor, group: dict[str, Any]) -> bool:
    """Return whether rows of a parameter of a group stay where they have no gradient."""
    return hasattr(p, _MARK) or bool(group.get("row_sparse"))


def take_rows(table: Tensor, rows: Any) -> Tensor:
    """Return ``table[rows]``, and mark a table that is a parameter; see :func:`mark_table`."""
    if isinstance(table, nn.Parameter):
        mark_table(table)
    if isinstance(rows, Tensor) and rows.dim() == 1 and rows.dtype == torch.int64:
        # The backward pass of an index sorts; this one does not.
        return table.index_select(0, rows)
    return table[rows]


def rows_with_gradient(grad: Tensor) -> Tensor:
    """Return bool (rows, 1, ...). NaN counts as a gradient."""
    dims = tuple(range(1, grad.dim()))
    moved = grad.to_dense().ne(0)
    return moved.any(dims, keepdim=True) if dims else moved


class _Held:
    """What a table was before a step, with its state."""

    def __init__(self, table: Tensor, group: dict[str, Any], states: dict[Any, Any]) -> None:
        self.table, self.group, self.states = table, group, states
        self.moved: Tensor | None = None
        self.before = table.clone()
        self.state_before: dict[str, Tensor] = {}
        for key, value in states.get(table, {}).items():
            rows = self._rows_of(value)
            if 1 < rows < table.shape[0]:
                # The table grew since the last step.
                states[table][key] = value = pad_rows(value, table)
                value[rows:] = self._first(key)
            if rows > 1 or rows == table.shape[0]:
                self.state_before[key] = value.clone()

    def _rows_of(self, value: Any) -> int:
        """Return the number of rows of what an optimizer keeps for a table; 0 of anything else."""
        is_like = isinstance(value, Tensor) and 0 < value.dim() == self.before.dim()
        return value.shape[0] if is_like else 0

    def _first(self, key: str) -> Any:
        return self.group.get(_BEGINS_AS.get(key, ""), 0)

    def see(self) -> None:
        """Let the rows move that have a gradient now."""
        if self.table.grad is not None:
            rows = rows_with_gradient(self.table.grad)
            self.moved = rows if self.moved is None else self.moved | rows

    def put_back(self) -> None:
        """Restore the rows without a gradient; state that the step made is as new there."""
        moved = self.moved
        if moved is None:
            moved = self.before.new_zeros((), dtype=torch.bool)
        torch.where(moved, self.table, self.before, out=self.table)
        for key, value in self.states.get(self.table, {}).items():
            before = self.state_before.get(key)
            if before is None:
                if self._rows_of(value) != self.before.shape[0]:
                    continue
                before = torch.zeros_like(value) + self._first(key)
            torch.where(moved, value, before.to(value.dtype), out=value)


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
    # An optimizer that holds them itself says which.
    holds_rows = getattr(optimizer, "holds_rows", None)
    tables = [
        (p, group)
        for group in optimizer.param_groups
        for p in group["params"]
        if is_table(p, group) and not (holds_rows is not None and holds_rows(p, group))
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
