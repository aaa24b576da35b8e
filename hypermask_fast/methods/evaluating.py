"""Modules in evaluation mode for a while, which a training forward of another thread never sees."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import torch
from torch import nn

_locks: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()


def modes_of(learner: nn.Module) -> threading.RLock:
    """Return the lock of a learner's modes, which a training forward holds too."""
    return _locks.setdefault(learner, threading.RLock())


@contextmanager
def evaluating(learner: nn.Module, part: nn.Module | None = None) -> Iterator[None]:
    """Put a learner, or a part of it, in evaluation mode without gradients, and back afterwards."""
    module = learner if part is None else part
    with modes_of(learner):
        modes = [(m, m.training) for m in module.modules()]
        module.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            for m, mode in modes:
                m.training = mode
