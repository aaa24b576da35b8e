"""Networks that know how they were made, so that they can be made again from a file."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Self

from torch import nn

_MADE = "made_with"


class Remade(nn.Module):
    """A network that keeps the arguments of its constructor, which are JSON values.

    Attributes:
        made_with: The class that was called, and its arguments by name.
    """

    made_with: tuple[type[nn.Module], Mapping[str, Any]]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        made = super().__new__(cls)
        if args or kwargs:  # A copy is made without, and given the attributes of the original.
            given = inspect.signature(cls.__init__).bind_partial(made, *args, **kwargs).arguments
            # Not by setattr: nn.Module's wants its constructor to have run.
            vars(made)[_MADE] = (cls, dict(list(given.items())[1:]))
        return made


def made_with(net: nn.Module) -> tuple[type[nn.Module], Mapping[str, Any]] | None:
    """Return the class and the arguments that a network was made with; None where it has none."""
    found: tuple[type[nn.Module], Mapping[str, Any]] | None = vars(net).get(_MADE)
    return found
