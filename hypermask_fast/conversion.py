"""Turns any network into one whose weights can be masked, in place, and back."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.nn.utils import parametrize

from hypermask_fast.errors import ConfigError
from hypermask_fast.layers import MaskedConv2d, MaskedLinear
from hypermask_fast.norms import TASK_NORMS

if TYPE_CHECKING:
    from hypermask_fast.methods.hypermask import HyperMask

_LAYERS: dict[type[nn.Module], type[MaskedLinear] | type[MaskedConv2d]] = {
    cls.plain: cls for cls in (MaskedLinear, MaskedConv2d)
}
_CONVERTED: tuple[type[nn.Module], ...] = (*_LAYERS.values(), *TASK_NORMS.values())
# Marks a converted network; holds the parameters that conversion froze.
_FROZEN = "_hypermask_fast_frozen"
_EXCLUDED = "excluded: frozen"


@dataclass(frozen=True)
class Entry:
    """A parameter of the target network.

    Attributes:
        name: As in ``named_parameters``.
        shape: Its shape.
        offset: Where its mask logits begin in the flat vector, or -1 where it has none.
        masked: Whether a mask multiplies it.
        reason: Why not, or "".
    """

    name: str
    shape: tuple[int, ...]
    offset: int
    masked: bool
    reason: str

    @property
    def size(self) -> int:
        """Number of elements."""
        size = 1
        for length in self.shape:
            size *= length
        return size


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, p) or fnmatchcase(name, f"{p}.*") for p in patterns)


def _check_parameters(net: nn.Module, exclude: tuple[str, ...]) -> None:
    names: dict[int, str] = {}
    for name, parameter in net.named_parameters(remove_duplicate=False):
        if id(parameter) in names and not _matches(name, exclude):
            raise ConfigError(
                f"{name} is tied to {names[id(parameter)]}, and one tensor cannot have two masks; "
                f"untie them or pass exclude=[{name!r}, {names[id(parameter)]!r}]"
            )
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise ConfigError(f"{name} has no shape yet; run one batch through the network first")
        if not parameter.is_floating_point():
            raise ConfigError(
                f"{name} is {parameter.dtype}, which a mask cannot multiply; convert the network "
                "before it is quantised"
            )
        names[id(parameter)] = name


def _check_module(name: str, module: nn.Module) -> None:
    if any(True for _ in module.parameters(recurse=False)) or parametrize.is_parametrized(module):
        kind = type(module).__name__
        raise ConfigError(
            f"{name or 'the network itself'} is a {kind} with parameters of its own, which cannot "
            "be masked; build it from nn.Linear, nn.Conv2d and normalisation layers, or pass "
            f"exclude=[{name or next(n for n, _ in module.named_parameters(recurse=False))!r}] to "
            "leave it as it is, frozen"
        )


def convert(net: nn.Module, exclude: tuple[str, ...] = ()) -> list[Entry]:
    """Give every ``nn.Linear``, ``nn.Conv2d`` and normalisation layer its masked class, in place.

    Instances change their class and nothing else: names, parameters, hooks and the state_dict stay.

    Args:
        net: The network.
        exclude: Names or glob patterns of modules and parameters that stay plain and frozen.

    Returns:
        The parameters in the order of ``named_parameters``, with offsets of their mask logits.

    Raises:
        ConfigError: A part cannot be masked, a pattern matches nothing, nothing is left to mask,
            or the network belongs to a learner already.
    """
    if _FROZEN in vars(net):
        raise ConfigError(
            f"this {type(net).__name__} belongs to a learner already; unconvert() it or build a "
            "second network"
        )
    modules = dict(net.named_modules())
    names = [*modules, *(name for name, _ in net.named_parameters())]
    for pattern in exclude:
        if not any(_matches(name, [pattern]) for name in names):
            raise ConfigError(
                f"exclude={pattern!r} matches no module or parameter; the modules are "
                f"{', '.join(filter(None, modules))}"
            )
    _check_parameters(net, exclude)
    changes: list[tuple[nn.Module, type[nn.Module]]] = []
    masked: set[str] = set()
    frozen_modules = [name for name in modules if name and _matches(name, exclude)]
    for name, module in modules.items():
        if name in frozen_modules:
            continue
        own = [f"{name}.{key}".lstrip(".") for key, _ in module.named_parameters(recurse=False)]
        if type(module) in _LAYERS and not parametrize.is_parametrized(module):
            changes.append((module, _LAYERS[type(module)]))
            masked.update(key for key in own if not _matches(key, exclude))
        elif type(module) in TASK_NORMS:
            changes.append((module, TASK_NORMS[type(module)]))
        elif not all(_matches(key, exclude) for key in own) or parametrize.is_parametrized(module):
            _check_module(name, module)
    if not masked:
        raise ConfigError(
            f"{type(net).__name__} has nothing to mask; it needs an nn.Linear or nn.Conv2d that "
            "exclude does not name"
        )
    norms = {id(module) for module, cls in changes if cls in TASK_NORMS.values()}
    entries, offset = [], 0
    for name, parameter in net.named_parameters():
        owner = name.rpartition(".")[0]
        is_masked = name in masked
        reason = "" if is_masked else _EXCLUDED
        if not is_masked and id(modules[owner]) in norms:
            reason = "normalisation"
        entries.append(
            Entry(name, tuple(parameter.shape), offset if is_masked else -1, is_masked, reason)
        )
        offset += parameter.numel() if is_masked else 0
    for module, cls in changes:
        module.__class__ = cls
    parameters = dict(net.named_parameters())
    frozen = [
        parameters[entry.name]
        for entry in entries
        if entry.reason == _EXCLUDED and parameters[entry.name].requires_grad
    ]
    for parameter in frozen:
        parameter.requires_grad_(False)
    vars(net)[_FROZEN] = frozen
    return entries


def last_executed(net: nn.Module, run: Callable[[], object]) -> tuple[str | None, list[str]]:
    """Return the masked layer that ran last in ``run()``, and those that did not run."""
    order: list[str] = []
    layers = {
        name: module
        for name, module in net.named_modules()
        if isinstance(module, (MaskedLinear, MaskedConv2d))
    }
    hooks = [
        module.register_forward_pre_hook(lambda *_, name=name: order.append(name))
        for name, module in layers.items()
    ]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return (order[-1] if order else None), [name for name in layers if name not in order]


def unconvert(net: nn.Module) -> nn.Module:
    """Make a converted network plain again, in place, and return it; its learner is void then."""
    for module in net.modules():
        if isinstance(module, _CONVERTED):
            for key in ("active", "mask_source"):
                vars(module).pop(key, None)
            module.__class__ = module.plain
    for parameter in vars(net).pop(_FROZEN, ()):
        parameter.requires_grad_(True)
    return net


def export_subnet(learner: HyperMask, task: int) -> nn.Module:
    """Return a plain copy of the target network with the masks of a task multiplied in.

    The copy has the class of the original network and does not need this package. With
    ``bn="per_task"`` it holds the task's normalisation; outputs that the task has no classes for
    are those of the shared head.

    Args:
        learner: The learner; it is not changed.
        task: A task that was added.

    Raises:
        ValueError: The task was not added.
    """
    weights = learner.masked_weights(task)
    net = unconvert(copy.deepcopy(learner.net))
    _load(net, weights)
    learner.install_norms(net, task)
    return net.eval()


def _load(net: nn.Module, values: Mapping[str, Tensor]) -> None:
    parameters = dict(net.named_parameters())
    for name, value in values.items():
        parameters[name].data.copy_(value)
