"""Public names of a package that are imported when first used (PEP 562)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module


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
