"""Turns any network into one whose weights can be replaced in a forward, in place, and back."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from hypermask_fast.conversion.checks import (
    CLASSES,
    MARK,
    check_modules,
    check_parameters,
    check_patterns,
)
from hypermask_fast.conversion.entries import EXCLUDED, Entry, entries_of, matches
from hypermask_fast.layers.dropouts import TASK_DROPOUTS
from hypermask_fast.layers.norms import TASK_NORMS, TaskNorm, check_module


@dataclass
class _Conversion:
    touched: list[tuple[nn.Module, type[nn.Module]]]
    frozen: list[tuple[nn.Module, str]]


def convert(
    net: nn.Module, exclude: tuple[str, ...] = (), *, generated: bool = False
) -> list[Entry]:
    """Give every ``nn.Linear``, ``nn.Conv2d`` and normalisation layer the class whose weights or
    state can be replaced, and every dropout layer one that can be turned off, in place.

    Instances change their class and nothing else: names, parameters, hooks and the state_dict stay.
    A network that is refused is left as it was.

    Args:
        net: The network.
        exclude: Names or glob patterns of modules and parameters that stay plain and frozen;
            normalisation layers among them keep their statistics.
        generated: As in :func:`hypermask_fast.conversion.entries.entries_of`.

    Returns:
        The parameters in the order of ``named_parameters``, with offsets of their mask logits.

    Raises:
        ConfigError: A part cannot be masked, a pattern matches nothing, nothing is left to mask,
            or the network belongs to a learner already.
    """
    check_module(net)
    check_patterns(net, exclude)
    check_parameters(net, exclude)
    check_modules(net, exclude)
    entries = entries_of(net, exclude, generated=generated)
    conversion = _Conversion([], [])
    for name, module in net.named_modules():
        excluded = bool(name) and matches(name, exclude)
        classes = {**(TASK_NORMS if excluded else CLASSES), **TASK_DROPOUTS}
        cls = classes.get(type(module))
        if cls is not None:
            conversion.touched.append((module, type(module)))
            module.__class__ = cls
        if excluded and isinstance(module, TaskNorm):
            module.frozen = True
    vars(net)[MARK] = conversion
    freeze(net, [entry.name for entry in entries if entry.reason == EXCLUDED])
    return entries


def freeze(net: nn.Module, names: Iterable[str]) -> None:
    """Turn off the gradients of parameters of a converted network until :func:`unconvert`."""
    for name in names:
        owner, _, key = name.rpartition(".")
        module = net.get_submodule(owner)
        parameter = module.get_parameter(key)
        if parameter.requires_grad:
            parameter.requires_grad_(False)
            vars(net)[MARK].frozen.append((module, key))


def unconvert(net: nn.Module) -> nn.Module:
    """Make a converted network plain again, in place, and return it; its learner is void then.

    Raises:
        TypeError: It is no module.
    """
    check_module(net)
    for root in net.modules():
        conversion = vars(root).pop(MARK, None)
        if conversion is None:
            continue
        for module, cls in conversion.touched:
            for key in ("active", "mask_source", "frozen"):
                vars(module).pop(key, None)
            module.__class__ = cls
        for module, key in conversion.frozen:
            module.get_parameter(key).requires_grad_(True)
    return net
