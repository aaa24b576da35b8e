"""What is imported when first used: public names (PEP 562), and what stands on a floor above."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_names(package: str, modules: Mapping[str, str]) -> Callable[[str], object]:
    """Return what a package calls ``__getattr__``, and let ``dir`` list the names.

    Args:
        package: Its ``__name__``.
        modules: For each public name the module of the package that has it; a module of the name
            itself is the value.
    """

    names = vars(sys.modules[package])
    names["__dir__"] = lambda: sorted({*names, *modules})

    def get(name: str) -> object:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = import_module(f"{package}.{modules[name]}")
        value = module if modules[name] == name else getattr(module, name)
        setattr(sys.modules[package], name, value)
        return value

    return get


_OFFERED: dict[str, str] = {}


def offer(use: str, function: str) -> None:
    """Offer a function to those who must not know where it stands, for it stands above them.

    Args:
        use: What they ask for.
        function: "module:name".
    """
    _OFFERED[use] = function


def offered(use: str) -> Callable[..., Any]:
    """Return the function that was offered for a use, imported now."""
    module, _, name = _OFFERED[use].partition(":")
    function: Callable[..., Any] = getattr(import_module(module), name)
    return function
