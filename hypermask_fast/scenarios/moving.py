"""Holders of tensors that exist once on each device, however many tasks ask for them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Self, cast
from weakref import WeakKeyDictionary, WeakValueDictionary

import torch

_copies: WeakKeyDictionary[Movable, WeakValueDictionary[torch.device, Movable]]
_copies = WeakKeyDictionary()


class Movable(ABC):
    """Base of immutable holders of tensors, compared by identity.

    Copies are remembered weakly: the last task that uses one frees it.
    """

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """The device of the tensors."""

    @abstractmethod
    def _moved(self, device: torch.device) -> Self:
        """Return a new copy on ``device``."""

    def to(self, device: torch.device | str) -> Self:
        """Return this object on ``device``: itself, a living copy, or a new one."""
        # "cuda" and "cuda:0" are the same device, and only a tensor knows.
        target = torch.empty(0, device=device).device
        if target == self.device:
            return self
        copies = _copies.setdefault(self, WeakValueDictionary())
        copy = copies.get(target)
        if copy is None:
            copy = copies[target] = self._moved(target)
        return cast(Self, copy)
