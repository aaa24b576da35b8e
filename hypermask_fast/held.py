"""Tensors that a module holds for a while."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Self

from torch import Tensor, nn


class Fixed(nn.Module):
    """A module whose buffers never change once they are there: no copy of them need be restored."""


class HoldsTensors(nn.Module):
    """A module with tensors that move with it, and are neither parameters nor buffers.

    What comes and goes while a task is learned is no buffer: who pairs the buffers of two modules,
    as averages of weights do, finds the same ones at any time.

    Attributes:
        held: Names of the attributes that are such a tensor, or None.
    """

    held: ClassVar[tuple[str, ...]] = ()

    def held_tensors(self) -> list[Tensor]:
        """Return those that are not None."""
        values = (getattr(self, name) for name in self.held)
        return [value for value in values if value is not None]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        for name in self.held:
            value = getattr(self, name)
            if value is not None:
                setattr(self, name, fn(value))
        return self
