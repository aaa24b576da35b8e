"""What becomes of each part of a network: masked, or how it is treated, or refused and why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, NamedTuple

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from hypermask_fast.conversion.entries import (
    EXCLUDED,
    GENERATED,
    NORMALISATION,
    PER_TASK,
    SHARED,
    Entry,
)
from hypermask_fast.conversion.obstacles import Obstacle, obstacle
from hypermask_fast.conversion.patterns import Chosen, Part, Patterns, patterns
from hypermask_fast.conversion.places import Place
from hypermask_fast.errors import ConfigError
from hypermask_fast.layers.dropouts import TASK_DROPOUTS
from hypermask_fast.layers.general import FAST_PATHS, GeneralModule, general_class
from hypermask_fast.layers.masked import MASKED_LAYERS, MaskedLayer
from hypermask_fast.layers.norms import is_norm, norm_class

_REASONS = {"exclude": EXCLUDED, "shared": SHARED, "per_task": PER_TASK}
_STANDS_IN = ("", GENERATED, PER_TASK)
"""The reasons of parameters that a task's forward replaces; "" is masked."""
_OF_LAYERS = {"weight", "bias"}

Places = dict[int, list[tuple[nn.Module, str]]]
"""By the id of a parameter the modules that have it, and its name there."""


class Treatment:
    """How parts of a network are treated that are not to be masked.

    Args:
        net: The network.
        chosen: Patterns by the names of the options: "exclude", "shared" and "per_task".

    Raises:
        ConfigError: A pattern is none or names nothing, or two options name one parameter.
    """

    def __init__(self, net: nn.Module, chosen: Mapping[str, Patterns]) -> None:
        self._chosen = {
            option: Chosen(net, option, patterns(option, given)) for option, given in chosen.items()
        }
        for name, parameter in net.named_parameters(remove_duplicate=False):
            named = [option for option, each in self._chosen.items() if parameter in each]
            if len(named) > 1:
                raise ConfigError(
                    f"{name} is named by {' and by '.join(named)}; let one of them name it"
                )

    reasons: ClassVar[tuple[str, ...]] = tuple(_REASONS.values())

    def names(self) -> dict[str, list[str]]:
        """Return the names of the parts that each option chose."""
        return {option: each.names for option, each in self._chosen.items()}

    def reason(self, part: Part) -> str:
        """Return the reason that a module or parameter is treated by; "" where none names it."""
        found = (option for option, each in self._chosen.items() if part in each)
        return next((_REASONS[option] for option in found), "")


class Parts(NamedTuple):
    """All parts of a network.

    Attributes:
        entries: Its parameters in the order of ``named_parameters``.
        places: For each entry the modules that have the parameter, and its name there.
        obstacles: What cannot be converted.
        shared: Names of modules that cannot be masked, and are trained for all tasks.
        classes: What modules become.
        frozen: Normalisation layers that keep their statistics.
    """

    entries: list[Entry]
    places: list[list[tuple[nn.Module, str]]]
    obstacles: list[Obstacle]
    shared: list[str]
    classes: dict[nn.Module, type[nn.Module]]
    frozen: list[nn.Module]

    def to_replace(self, net: nn.Module) -> list[Place]:
        """Return the modules of a network, just converted, whose parameters are replaced.

        Normalisation layers, which have states, are not among them.
        """
        replaced: dict[nn.Module, dict[str, str]] = {}
        for entry, owners in zip(self.entries, self.places, strict=True):
            for module, key in owners:
                if entry.reason in _STANDS_IN:
                    replaced.setdefault(module, {})[key] = entry.name
        return [
            Place(name, module, replaced.get(module, {}))
            for name, module in net.named_modules()
            if module in self.classes and isinstance(module, MaskedLayer | GeneralModule)
        ]


def parts_of(net: nn.Module, treatment: Treatment, *, generated: bool, shares: bool) -> Parts:
    """Return what becomes of each part of a network; nothing is changed.

    Args:
        net: The network.
        treatment: Of what is not to be replaced.
        generated: All that is not treated, normalisation too, is replaced by what a hypernetwork
            emits; else normalisation stays and masks multiply the rest.
        shares: What runs but cannot be masked is trained for all tasks, and no obstacle.
    """
    places = _places(net)
    obstacles = list(_obstacles(net, treatment))
    shared = [each.name for each in obstacles if each.may_be_shared and shares]
    obstacles = [each for each in obstacles if each.name not in shared]
    unmasked = {id(p) for name in shared for p in net.get_submodule(name).parameters()}
    entries, offset = [], 0
    for name, parameter in net.named_parameters():
        of_norm = any(is_norm(module) for module, _ in places[id(parameter)])
        reason = treatment.reason(parameter) or (SHARED if id(parameter) in unmasked else "")
        if not reason and generated:
            reason = GENERATED
        elif not reason and of_norm:
            reason = NORMALISATION
        if of_norm and len(places[id(parameter)]) > 1 and reason in (*_STANDS_IN, NORMALISATION):
            obstacles.append(Obstacle(name, "tied to another parameter", "untie normalisations"))
        begin = offset if reason in ("", GENERATED) else -1
        shape = () if is_lazy(parameter) else tuple(parameter.shape)
        entries.append(Entry(name, shape, begin, not reason, reason))
        offset += 0 if begin < 0 else entries[-1].size
    of_entries = [places[id(parameter)] for parameter in net.parameters()]
    stands_in = {
        module
        for entry, owners in zip(entries, of_entries, strict=True)
        for module, _ in owners
        if entry.reason in _STANDS_IN
    }
    classes: dict[nn.Module, type[nn.Module]] = {}
    frozen = []
    refused = {each.name for each in obstacles}
    for name, module in net.named_modules():
        if name in refused:
            continue
        try:
            cls = _class_of(module, stands_in)
        except TypeError:
            why = f"a {type(module).__name__}, a class that cannot be extended"
            obstacles.append(Obstacle(name, why, "give it a class of its own"))
            continue
        if cls is not None:
            classes[module] = cls
            if is_norm(module) and treatment.reason(module) == EXCLUDED:
                frozen.append(module)
    return Parts(entries, of_entries, obstacles, shared, classes, frozen)


def _places(net: nn.Module) -> Places:
    places: Places = {}
    for module in net.modules():
        for key, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            places.setdefault(id(parameter), []).append((module, key))
    return places


def _obstacles(net: nn.Module, treatment: Treatment) -> Iterable[Obstacle]:
    seen: set[nn.Module] = set()
    for name, module in net.named_modules():
        if module in seen:
            continue
        keys = {
            key
            for key, p in module.named_parameters(recurse=False)
            if treatment.reason(p) in ("", PER_TASK)
        }
        found = obstacle(name, module, keys, stays=treatment.reason(module) in (EXCLUDED, SHARED))
        if found is None:
            continue
        if found.may_be_shared:
            reasons = {treatment.reason(p) for p in module.parameters()}
            if reasons.isdisjoint(("", PER_TASK)):
                continue
            found = found._replace(may_be_shared=PER_TASK not in reasons)
            seen.update(module.modules())
        yield found


def _class_of(module: nn.Module, stands_in: set[nn.Module]) -> type[nn.Module] | None:
    """Return what a module becomes, or None where it stays; TypeError where that cannot be made."""
    kind: Any = type(module)
    is_patched = "forward" in vars(module)
    if kind in TASK_DROPOUTS:
        return TASK_DROPOUTS[kind]
    if is_norm(module):
        held = (*module.parameters(), *module.buffers())
        counts = bool(held) or isinstance(module, _BatchNorm)
        return norm_class(kind) if counts and not is_patched else None
    if module in stands_in:
        own = {key for key, p in module._parameters.items() if p is not None}
        if kind in MASKED_LAYERS.values():
            return kind
        if kind in MASKED_LAYERS and own <= _OF_LAYERS and "weight" in own and not is_patched:
            return MASKED_LAYERS[kind]
        return general_class(kind, tuple(module._parameters))
    if isinstance(module, FAST_PATHS) and not stands_in.isdisjoint(module.modules()):
        return general_class(kind, tuple(module._parameters))
    return None
