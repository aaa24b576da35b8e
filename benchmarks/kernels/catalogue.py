"""All kernel cases, by name."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatch

from benchmarks.kernels import head, layers
from benchmarks.kernels.case import KernelCase
from hypermask_fast.errors import ConfigError, nearest


def find_kernel_cases(names: Sequence[str] | None = None, size: str = "full") -> list[KernelCase]:
    """Return the kernel cases, the most important first, or those of them that are named.

    Args:
        names: Such as "head-logits" or "linear-*"; None for all.
        size: "full" or "tiny".

    Raises:
        ConfigError: A name fits no case.
    """
    found = [*head.cases(size), *layers.cases(size)]
    known = [case.name for case in found]
    for name in names or ():
        if not any(fnmatch(other, name) for other in known):
            raise ConfigError(f"case is {name!r}{nearest(name, known)}; no kernel case fits it")
    if names is None:
        return found
    return [case for case in found if any(fnmatch(case.name, name) for name in names)]
