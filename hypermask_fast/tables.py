"""Parameters with a row for each task."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def add_rows(table: nn.Parameter, rows: Tensor) -> None:
    """Give a parameter more rows; it stays the object that optimizers hold, without a gradient."""
    more = torch.cat((table.data, rows))
    table.grad = None
    # While a graph is alive autograd expects gradients of the old shape; another dtype ends that.
    table.data = table.data.to(torch.complex64)
    table.data = more


def pad_rows(values: Tensor, table: Tensor) -> Tensor:
    """Return what is kept for each row of a table, with zeros for the rows it lacks."""
    missing = len(table) - len(values) if table.dim() else 0
    if missing <= 0:
        return values
    return torch.cat((values, values.new_zeros(missing, *values.shape[1:])))
