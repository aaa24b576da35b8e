"""Turns any network into one whose weights can be replaced in a forward, in place, and back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from hypermask_fast.conversion.checks import MARK, check_free, warn_shared
from hypermask_fast.conversion.entries import EXCLUDED, Entry
from hypermask_fast.conversion.obstacles import refuse
from hypermask_fast.conversion.parts import Parts, Treatment, parts_of
from hypermask_fast.conversion.patterns import Patterns
from hypermask_fast.errors import ConfigError
from hypermask_fast.layers.general import SOURCE, GeneralModule
from hypermask_fast.layers.norms import TaskNorm, check_module


@dataclass
class _Conversion:
    touched: list[tuple[nn.Module, type[nn.Module]]]
    frozen: list[tuple[nn.Module, str]]
    entries: Sequence[Entry]
    treated: Mapping[str, Sequence[str]]


def convert(
    net: nn.Module,
    exclude: Patterns = (),
    *,
    shared: Patterns = (),
    per_task: Patterns = (),
    generated: bool = False,
    shares: bool = False,
) -> Parts:
    """Give every module with parameters a class whose parameters or state can be replaced, and
    every dropout layer one that can be turned off, in place.

    Instances change their class and nothing else: names, parameters, hooks and the state_dict stay.
    A network that is refused is left as it was.

    Args:
        net: The network.
        exclude: Names or globs of modules and parameters, classes of modules, or functions of a
            name and a part, for what stays plain and frozen; normalisation layers among it keep
            their statistics.
        shared: The same for what stays plain and is trained for all tasks.
        per_task: The same for what each task has a copy of.
        generated, shares: As in :func:`hypermask_fast.conversion.parts.parts_of`.

    Returns:
        The parts, whose entries are the parameters in the order of ``named_parameters``.

    Raises:
        ConfigError: A part cannot be converted, a pattern matches nothing, nothing is left to mask,
            or the network belongs to a learner already.
    """
    check_module(net)
    check_free(net)
    treatment = Treatment(net, {"exclude": exclude, "shared": shared, "per_task": per_task})
    parts = parts_of(net, treatment, generated=generated, shares=shares)
    refuse(parts.obstacles, shares=shares)
    if all(entry.offset < 0 for entry in parts.entries):
        raise ConfigError(
            f"{type(net).__name__} has nothing to {'generate' if generated else 'mask'}; it needs "
            "a parameter that is no normalisation's and that no option names"
        )
    warn_shared(net, parts.shared)
    conversion = _Conversion([], [], parts.entries, treatment.names())
    for module, cls in parts.classes.items():
        conversion.touched.append((module, type(module)))
        module.__class__ = cls
    for module in parts.frozen:
        assert isinstance(module, TaskNorm)
        module.frozen = True
    vars(net)[MARK] = conversion
    freeze(net, [entry.name for entry in parts.entries if entry.reason == EXCLUDED])
    return parts


def entries_in(net: nn.Module) -> Sequence[Entry]:
    """Return the parameters of a network that was converted."""
    conversion: _Conversion = vars(net)[MARK]
    return conversion.entries


def treated_in(net: nn.Module) -> Mapping[str, Sequence[str]]:
    """Return the names of what each option of `convert` chose; none where it was not called."""
    conversion: _Conversion | None = vars(net).get(MARK)
    return {} if conversion is None else conversion.treated


def plain_classes(net: nn.Module) -> dict[str, type[nn.Module]]:
    """Return the class that each module has outside of a learner, by name."""
    conversion: _Conversion | None = vars(net).get(MARK)
    before = {} if conversion is None else dict(conversion.touched)
    return {name: before.get(module, type(module)) for name, module in net.named_modules()}


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
            # A module of a user's class may have attributes of any other name.
            made = (SOURCE, module._hypermask_fast_active)
            keys = (
                made if isinstance(module, GeneralModule) else ("active", "mask_source", "frozen")
            )
            for key in keys:
                vars(module).pop(key, None)
            module.__class__ = cls
        for module, key in conversion.frozen:
            module.get_parameter(key).requires_grad_(True)
    return net
