"""Parameters that each task has a copy of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hypermask_fast.optim.rows import take_rows
from hypermask_fast.tables import add_rows


class CopiedRows(NamedTuple):
    """A task's copies of parameters, by the names of entries; beside states of normalisation."""

    values: Mapping[str, Tensor]
    learning: bool = False


class TaskCopies(nn.Module):
    """Copies of parameters of a network, a row a task; each starts as the network's own.

    Args:
        net: The network.
        names: Of the parameters, in order.
        capacity: Rows.
    """

    def __init__(self, net: nn.Module, names: Sequence[str], capacity: int) -> None:
        super().__init__()
        self.names = tuple(names)
        self._own = [net.get_parameter(name) for name in names]
        self.tables = nn.ParameterList(
            nn.Parameter(own.detach().expand(capacity, *own.shape).clone(), own.requires_grad)
            for own in self._own
        )

    @torch.no_grad()
    def grow(self, capacity: int) -> None:
        """Add rows, which start as the network's own."""
        for table, own in zip(self.tables, self._own, strict=True):
            add_rows(table, own.detach().expand(capacity - len(table), *own.shape))

    @torch.no_grad()
    def set_row(self, task: int, source: int | None) -> None:
        """Make a row as another one; None: as the network's own."""
        for table, own in zip(self.tables, self._own, strict=True):
            table[task] = own if source is None else table[source]

    def state(self, task: int) -> CopiedRows:
        """Return the row of a task."""
        tables = zip(self.names, self.tables, strict=True)
        return CopiedRows({name: take_rows(table, task) for name, table in tables})

    def blended(self, alpha: Tensor) -> CopiedRows:
        """Return the sum of the first rows, times their factors alpha (tasks,)."""
        rows = slice(len(alpha))
        tables = zip(self.names, self.tables, strict=True)
        return CopiedRows(
            {name: torch.tensordot(alpha, take_rows(table, rows), 1) for name, table in tables}
        )

    @torch.no_grad()
    def install(self, net: nn.Module, task: int) -> None:
        """Copy the row of a task into a plain network."""
        for name, table in zip(self.names, self.tables, strict=True):
            net.get_parameter(name).copy_(table[task])
