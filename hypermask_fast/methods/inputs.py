"""What a network is given: one tensor, or several inputs, by position and by keyword."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from hypermask_fast.errors import shown


class Inputs:
    """Several inputs of a network, by position and by keyword.

    Rows are taken of those that are tensors, which then have one for each example. What is neither
    a tensor nor holds one goes to every forward as it is.

    Args:
        args: By position.
        kwargs: By keyword; at least one of all is a tensor, or holds one.
    """

    def __init__(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        self.args, self.kwargs = tuple(args), dict(kwargs)

    def _named(self) -> dict[str, Any]:
        by_place = {str(place): value for place, value in enumerate(self.args)}
        return by_place | {repr(name): value for name, value in self.kwargs.items()}

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors, by the place or the keyword of the input that is or holds them."""
        found: dict[str, Tensor] = {}
        for name, value in self._named().items():
            leaves = [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
            for number, leaf in enumerate(leaves):
                found[name if value is leaf else f"{name}, tensor {number}"] = leaf
        return found

    def __len__(self) -> int:
        return len(next(iter(self.tensors().values())))

    @property
    def device(self) -> torch.device:
        """Of the first tensor."""
        return next(iter(self.tensors().values())).device

    def _each(self, function: Callable[[Tensor], Tensor]) -> Inputs:
        rows = len(self)

        def of(name: str, value: Any) -> Any:
            if isinstance(value, Tensor) and (not value.dim() or len(value) == rows):
                return function(value) if value.dim() else value
            if not any(isinstance(leaf, Tensor) for leaf in tree_leaves(value)):
                return value
            what = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else "tensors inside"
            raise ValueError(
                f"the input {name} has {what} and the batch {rows} rows, so a part of them cannot "
                "be taken; give one task and no batch_size, or tensors with a row for each example"
            )

        values = {name: of(name, value) for name, value in self._named().items()}
        args = tuple(values[str(place)] for place in range(len(self.args)))
        return Inputs(args, {name: values[repr(name)] for name in self.kwargs})

    def __getitem__(self, rows: Any) -> Inputs:
        return self._each(lambda value: value[rows])

    def split(self, count: int) -> list[Inputs]:
        """Return parts of at most ``count`` rows; all as they are where there are no more."""
        if len(self) <= count:
            return [self]
        return [self[first : first + count] for first in range(0, len(self), count)]

    def head(self, rows: int) -> Inputs:
        """Return the first rows, or everything where rows cannot be taken."""
        try:
            return self[:rows]
        except ValueError:
            return self

    def __repr__(self) -> str:
        found = (f"{name} {t.dtype} {tuple(t.shape)}" for name, t in self.tensors().items())
        return f"inputs ({'; '.join(found)})"


Batch: TypeAlias = "Tensor | Inputs"
"""One input, or several."""
Given: TypeAlias = Any
"""A batch as users give it: a tensor; a tuple or list of inputs; a dict of keyword inputs."""


def inputs_of(x: Any) -> Any:
    """Return what was given as a batch: a tensor, or :class:`Inputs`; else what is to be refused.

    Args:
        x: A tensor, a tuple or list of inputs, or a dict of inputs by keyword.
    """
    if isinstance(x, Tensor | Inputs):
        return x
    is_named = isinstance(x, Mapping) and all(isinstance(name, str) for name in x)
    if not is_named and not isinstance(x, tuple | list):
        return x
    made = Inputs((), x) if is_named else Inputs(x, {})
    # A list of pairs is no batch; in a tuple anything may be an input.
    direct = any(isinstance(value, Tensor) for value in made.args)
    if not made.tensors() or (isinstance(x, list) and not direct):
        return x
    if len(made.args) == 1 and not made.kwargs and isinstance(made.args[0], Tensor):
        return made.args[0]
    return made


def called_with(net: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Return the batch that a call was given, as :func:`inputs_of` does.

    Args:
        net: The network.
        args: By position; one alone may be a tuple, list or dict of inputs.
        kwargs: By keyword. One called x is the first input of a network that has no other x.
    """
    if not args and list(kwargs) == ["x"]:
        names = list(inspect.signature(net.forward).parameters)
        if "x" not in names[1:]:
            args, kwargs = (kwargs["x"],), {}
    if not kwargs and len(args) == 1:
        return inputs_of(args[0])
    made = Inputs(args, kwargs)
    if not made.tensors():
        raise TypeError(
            f"inputs are {shown((*made.args, *made.kwargs.values()))}; give at least one tensor"
        )
    return made


def call(net: Callable[..., Any], x: Batch) -> Any:
    """Return what a network makes of a batch."""
    return net(*x.args, **x.kwargs) if isinstance(x, Inputs) else net(x)


def signature(x: Batch) -> tuple[Any, ...]:
    """Return what decides whether inputs run through a network: dtype, and shape of a row."""
    if isinstance(x, Inputs):
        return tuple((name, *signature(value)) for name, value in x.tensors().items())
    return x.dtype, *x.shape[1:]
