"""How the network of a saved learner is made again: from the catalogue, by a function, or given."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import torch
from torch import nn

from hypermask_fast import networks
from hypermask_fast.conversion.convert import plain_classes
from hypermask_fast.errors import CheckpointError, ConfigError, shown
from hypermask_fast.networks.remade import made_with

_CLASS, _ARGUMENTS, _FUNCTION = "class", "arguments", "function"


def called(path: object) -> nn.Module:
    """Return the network that a function makes.

    Args:
        path: "module:function"; the function takes no arguments.

    Raises:
        ConfigError: It is not such a path, cannot be imported, or makes no network.
    """
    module, colon, name = path.partition(":") if isinstance(path, str) else ("", "", "")
    if not (module and colon and name):
        raise ConfigError(
            f"network={shown(path)} names no function; give 'module:function', which can be "
            "imported and makes the network"
        )
    if module == "__main__":
        raise ConfigError(
            f"network={path!r} is in the script that runs, which another process does not import; "
            "put the function into a module of its own"
        )
    try:
        function: Any = import_module(module)
        for part in name.split("."):
            function = getattr(function, part)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"network={path!r} cannot be imported ({error}); give a function that can be, or load "
            "with hmf.load(path, net)"
        ) from error
    try:
        made = function() if callable(function) else function
    except Exception as error:  # A function may raise anything.
        reason = " ".join(str(error).split()) or "without a word"
        raise ConfigError(
            f"network={path!r} raised a {type(error).__name__} ({reason}); give a function without "
            "arguments that returns a torch.nn.Module"
        ) from error
    if not isinstance(made, nn.Module):
        raise ConfigError(
            f"network={path!r} gives {shown(made)}; give a function without arguments that returns "
            "a torch.nn.Module"
        )
    return made


def description_of(net: nn.Module, function: str | None) -> dict[str, Any] | None:
    """Return how a network is made again, as JSON values; None where that is not known.

    Args:
        net: The network, plain or converted.
        function: What makes it, as in :func:`called`, or None.

    Raises:
        ConfigError: What is made so is another network.
    """
    found: dict[str, Any]
    if function is not None:
        found = {_FUNCTION: function}
    else:
        made = made_with(net)
        if made is None or getattr(networks, made[0].__name__, None) is not made[0]:
            return None
        found = {_CLASS: made[0].__name__, _ARGUMENTS: dict(made[1])}
    with torch.random.fork_rng():
        again = made_again(found)
    difference = differs(structure_of(net), structure_of(again))
    if difference and function is not None:
        raise ConfigError(
            f"network={function!r} makes another network than the learner's: {difference}; give "
            "the function that made it"
        )
    return None if difference else found


def made_again(description: Mapping[str, Any] | None) -> nn.Module:
    """Return a new network from what :func:`description_of` returned.

    Raises:
        CheckpointError: It does not say how.
        ConfigError: As in :func:`called`.
    """
    if description is None:
        raise CheckpointError(
            "the file does not tell how the learner's network is made, for it is not from "
            "hmf.networks; give a new one: hmf.load(path, net), or save with "
            "network='module:function'"
        )
    if _FUNCTION in description:
        return called(description[_FUNCTION])
    name = description[_CLASS]
    if name not in networks.__all__:
        raise CheckpointError(
            f"the file names the network {shown(name)}, which this version of hypermask_fast has "
            "not; load it with the version that saved it, or with hmf.load(path, net)"
        )
    net: nn.Module = getattr(networks, name)(**description[_ARGUMENTS])
    return net


def structure_of(net: nn.Module) -> dict[str, str]:
    """Return what each module of a network is, by name, without its conversion.

    PyTorch's modules tell their sizes and options too; what others say of themselves may be
    anything.
    """
    modules = dict(net.named_modules())
    return {
        name: f"{cls.__name__}({cls.extra_repr(modules[name])})"
        if cls.__module__.startswith("torch.nn.")
        else cls.__name__
        for name, cls in plain_classes(net).items()
    }


def differs(expected: Mapping[str, str], given: Mapping[str, str]) -> str:
    """Return the first difference of two structures in words, or ""."""
    for name in [*expected, *(name for name in given if name not in expected)]:
        wanted, has = expected.get(name, "nothing"), given.get(name, "nothing")
        if wanted != has:
            return f"{name or 'the network'} is {has} in place of {wanted}"
    return ""
