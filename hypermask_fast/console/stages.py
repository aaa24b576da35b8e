"""What a run is busy with beside its steps: told where it is done, shown where one listens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol


class Listener(Protocol):
    """What is told of stages, which may lie within each other."""

    def begin(self, what: str) -> None:
        """A stage begins."""

    def end(self, *, failed: bool) -> None:
        """The stage that began last has ended."""


# Of the thread that listens: what others do beside it is not what it waits for.
_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


@contextmanager
def listening(listener: Listener | None) -> Iterator[None]:
    """Tell a listener, in a ``with`` block, of the stages of this thread; None: nobody."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


@contextmanager
def stage(what: str) -> Iterator[None]:
    """Tell who listens what the ``with`` block does, in words such as "reading the data"."""
    listener = _listener.get()
    if listener is None:
        yield
        return
    listener.begin(what)
    failed = True
    try:
        yield
        failed = False
    finally:
        listener.end(failed=failed)
