"""The choice between the kernels and the reference."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from hypermask_fast.errors import ConfigError, nearest

BACKENDS = ("auto", "triton", "reference")
_VARIABLE = "HYPERMASK_FAST_BACKEND"


class _Chosen(threading.local):
    # A ContextVar would end the graph: Dynamo cannot trace it.
    name: str | None = None


_chosen = _Chosen()


def _checked(name: str, source: str) -> str:
    if name not in BACKENDS:
        raise ConfigError(
            f"{source} is {name!r}{nearest(name, BACKENDS)}; choose one of {', '.join(BACKENDS)}"
        )
    return name


def requested(name: str | None = None) -> str:
    """Return the backend asked for: the argument, else the context's, else the environment's.

    Raises:
        ConfigError: The name is unknown.
    """
    if name is not None:
        return _checked(name, "backend")
    if _chosen.name is not None:
        return _chosen.name
    return _checked(os.environ.get(_VARIABLE) or "auto", _VARIABLE)


def resolve(op: str, name: str | None = None) -> str:
    """Return the backend that runs ``op``; a forced one that cannot run raises.

    A compiled function keeps the backend that was asked for when it was compiled.

    Raises:
        ConfigError: The name is unknown, or "triton" was forced for an operation without a kernel.
    """
    wanted = requested(name)
    if wanted == "triton":
        raise ConfigError(f"backend 'triton' has no kernel for {op}; use 'auto' or 'reference'")
    return "reference"


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Choose the backend inside a ``with`` block, for this thread.

    A function that ``torch.compile`` compiled already keeps the backend of its compilation.

    Args:
        name: "auto" (the fastest that was measured), "triton" or "reference".

    Raises:
        ConfigError: The name is unknown.
    """
    before, _chosen.name = _chosen.name, _checked(name, "backend")
    try:
        yield
    finally:
        _chosen.name = before
