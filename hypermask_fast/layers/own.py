"""Parameters of a module as attributes that are read from what stands in for them."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from hypermask_fast.layers.stand_ins import Converted, ran, stand_in, standing_in, was_read

Replaced = Callable[[Any, str, Any], Any]
"""What is read, of a stand-in, the name of a parameter, and the module's own."""


def by_name(found: Mapping[str, Tensor], key: str, own: Any) -> Any:
    """Return what is read where the stand-in is tensors by the names of parameters."""
    return found.get(key, own)


def readable(key: str, replaced: Replaced) -> property:
    """Return a parameter of a module as an attribute of its class.

    Whoever reads it, also past the module's forward, gets what stands in for it.

    Args:
        key: Its name.
        replaced: Says what that is.
    """

    def get(module: Any) -> Any:
        own = module._parameters.get(key)
        if own is None:
            if key in module._parameters:
                return None
            if key in vars(module):
                return vars(module)[key]
            raise AttributeError(f"{type(module).__name__!r} object has no attribute {key!r}")
        found = standing_in(module)
        if found is None:
            return own
        value = replaced(found, key, own)
        return value if value is own or value is None else was_read(module, value)

    # What is no parameter any more, as a pruned weight, is set and deleted as on any module.
    def put(module: Any, value: Any) -> None:
        vars(module)[key] = value

    def delete(module: Any) -> None:
        del vars(module)[key]

    return property(get, put, delete)


class MadeModule(Converted):
    """A module of a class that is made for the plain one, and made again where it is loaded."""

    # The function that makes the class, and its arguments.
    _hypermask_fast_made: ClassVar[tuple[Any, ...]]

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _new, type(self)._hypermask_fast_made, self.__getstate__()


def _new(make: Callable[..., type[nn.Module]], *args: Any) -> nn.Module:
    cls = make(*args)
    return cls.__new__(cls)


def forward_of(plain: type[nn.Module]) -> Callable[..., Any]:
    """Return the forward of a class, which takes note of outputs that a checkpoint may repeat."""
    run = plain.forward

    @wraps(run)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        out = run(self, *args, **kwargs)
        if stand_in(self) is not None:
            for leaf in (out,) if isinstance(out, Tensor) else tree_leaves(out):
                if isinstance(leaf, Tensor):
                    ran(self, leaf)
        return out

    return forward


def made_class(plain: type[nn.Module], base: type[MadeModule], /, **body: Any) -> type[Any]:
    """Return a subclass of a plain class and of ``base``.

    Args:
        plain: The class.
        base: What its modules become.
        body: Attributes of the new class.

    Raises:
        TypeError: The class cannot be extended.
    """
    attributes = {
        "__module__": plain.__module__,
        "__doc__": f"``{plain.__name__}`` with parameters that are replaced in a forward.",
        **body,
    }
    name = f"Masked{plain.__name__}"
    return types.new_class(name, (base, plain), {}, lambda made: made.update(attributes))
