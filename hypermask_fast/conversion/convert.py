"""Turns any network into one whose weights can be masked, in place, and back."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from hypermask_fast.errors import ConfigError
from hypermask_fast.layers.masked import MaskedConv2d, MaskedLinear
from hypermask_fast.layers.norms import TASK_NORMS, TaskNorm

if TYPE_CHECKING:
    from hypermask_fast.methods.hypermask.learner import HyperMask

MaskedLayer = MaskedLinear | MaskedConv2d

_LAYERS: dict[type[nn.Module], type[MaskedLayer]] = {
    cls.plain: cls for cls in (MaskedLinear, MaskedConv2d)
}
_PLAIN: dict[type[nn.Module], type[nn.Module]] = {cls: plain for plain, cls in _LAYERS.items()}
# The classes that a converted module may have already: layers that the user masked by hand.
_CLASSES: dict[type[nn.Module], type[nn.Module]] = {
    **_LAYERS,
    **{cls: cls for cls in _PLAIN},
    **TASK_NORMS,
}
_READS_WEIGHTS = (nn.TransformerEncoderLayer, nn.MultiheadAttention)
_EXCLUDED = "excluded: frozen"
# An attribute of a converted network: what unconvert() has to undo.
_MARK = "_hypermask_fast_conversion"


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
        return math.prod(self.shape)


@dataclass
class _Conversion:
    touched: list[tuple[nn.Module, type[nn.Module]]]
    frozen: list[tuple[nn.Module, str]]


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, p) or fnmatchcase(name, f"{p}.*") for p in patterns)


def _join(module: str, key: str) -> str:
    return f"{module}.{key}" if module else key


def _check_patterns(net: nn.Module, exclude: tuple[str, ...]) -> None:
    modules = [name for name, _ in net.named_modules(remove_duplicate=False) if name]
    names = [*modules, *(name for name, _ in net.named_parameters(remove_duplicate=False))]
    for pattern in exclude:
        if not any(_matches(name, [pattern]) for name in names):
            raise ConfigError(
                f"exclude={pattern!r} matches no module or parameter; the modules are "
                f"{', '.join(modules)}"
            )


def _check_parameters(net: nn.Module, exclude: tuple[str, ...]) -> None:
    first: dict[int, str] = {}
    for name, parameter in net.named_parameters(remove_duplicate=False):
        other = first.setdefault(id(parameter), name)
        excluded = _matches(name, exclude)
        if other != name and not (excluded and _matches(other, exclude)):
            raise ConfigError(
                f"{name} is tied to {other}, and one tensor cannot have two masks; untie them or "
                f"pass exclude=[{name!r}, {other!r}]"
            )
        if is_lazy(parameter):
            raise ConfigError(
                f"{name} has no shape yet; run one batch through the network before it is masked"
            )
        if not excluded and not parameter.is_floating_point():
            raise ConfigError(
                f"{name} is {parameter.dtype}, which a mask cannot multiply; convert the network "
                "before it is quantised"
            )


def _obstacle(module: nn.Module, keys: set[str]) -> str | None:
    """Say why a module cannot be converted; ``keys`` are its own parameters not excluded."""
    kind = type(module).__name__
    own = {key for key, _ in module.named_parameters(recurse=False)}
    if isinstance(module, _READS_WEIGHTS):
        return f"a {kind}, which reads its layers' weights past their masks"
    if "quantized" in type(module).__module__.split("."):
        return f"a {kind}, which is quantised"
    if parametrize.is_parametrized(module):
        return f"a {kind}, whose weight is the result of a parametrization"
    if type(module) in _CLASSES:
        if own - {"weight", "bias"} or ("weight" not in own and type(module) not in TASK_NORMS):
            return f"a {kind} whose parameters are {', '.join(sorted(own))}, not weight and bias"
        if "forward" in vars(module):
            return f"a {kind} whose forward was replaced on the instance"
        return None
    if keys:
        return f"a {kind} with parameters of its own, which cannot be masked"
    if getattr(module, "running_mean", None) is not None:
        return f"a {kind} with running statistics, which the tasks would share"
    return None


def _belongs(module: nn.Module) -> bool:
    own = vars(module)
    return (
        _MARK in own
        or isinstance(module, TaskNorm)
        or ("mask_source" in own and "active" not in own)
    )


def _check_modules(net: nn.Module, exclude: tuple[str, ...]) -> None:
    for name, module in net.named_modules():
        if _belongs(module):
            raise ConfigError(
                f"{name or f'this {type(net).__name__}'} belongs to a learner already; "
                "unconvert() it or build a second network"
            )
        if name and _matches(name, exclude):
            continue
        if "active" in vars(module):
            raise ConfigError(
                f"{name or 'the network itself'} has a mask already; call its clear_mask() first"
            )
        own = [key for key, _ in module.named_parameters(recurse=False)]
        keys = {key for key in own if not _matches(_join(name, key), exclude)}
        obstacle = _obstacle(module, keys)
        if obstacle:
            excluded = [name] if name else sorted(keys)
            fix = f", or pass exclude={excluded} to leave it as it is, frozen" if excluded else ""
            raise ConfigError(
                f"{name or 'the network itself'} is {obstacle}; build it from nn.Linear, "
                f"nn.Conv2d and normalisation layers{fix}"
            )


def _entries(net: nn.Module, exclude: tuple[str, ...]) -> list[Entry]:
    modules = dict(net.named_modules())
    entries, offset = [], 0
    for name, parameter in net.named_parameters():
        reason = ""
        if _matches(name, exclude):
            reason = _EXCLUDED
        elif type(modules[name.rpartition(".")[0]]) in TASK_NORMS:
            reason = "normalisation"
        begin = -1 if reason else offset
        entries.append(Entry(name, tuple(parameter.shape), begin, not reason, reason))
        offset += 0 if reason else parameter.numel()
    if not offset:
        raise ConfigError(
            f"{type(net).__name__} has nothing to mask; it needs an nn.Linear or nn.Conv2d that "
            "exclude does not name"
        )
    return entries


def convert(net: nn.Module, exclude: tuple[str, ...] = ()) -> list[Entry]:
    """Give every ``nn.Linear``, ``nn.Conv2d`` and normalisation layer its masked class, in place.

    Instances change their class and nothing else: names, parameters, hooks and the state_dict stay.
    A network that is refused is left as it was.

    Args:
        net: The network.
        exclude: Names or glob patterns of modules and parameters that stay plain and frozen;
            normalisation layers among them keep their statistics.

    Returns:
        The parameters in the order of ``named_parameters``, with offsets of their mask logits.

    Raises:
        ConfigError: A part cannot be masked, a pattern matches nothing, nothing is left to mask,
            or the network belongs to a learner already.
    """
    _check_patterns(net, exclude)
    _check_parameters(net, exclude)
    _check_modules(net, exclude)
    entries = _entries(net, exclude)
    conversion = _Conversion([], [])
    for name, module in net.named_modules():
        excluded = bool(name) and _matches(name, exclude)
        cls = TASK_NORMS.get(type(module)) if excluded else _CLASSES.get(type(module))
        if cls is not None:
            conversion.touched.append((module, type(module)))
            module.__class__ = cls
        if excluded and isinstance(module, TaskNorm):
            module.frozen = True
    vars(net)[_MARK] = conversion
    freeze(net, [entry.name for entry in entries if entry.reason == _EXCLUDED])
    return entries


def is_converted(net: nn.Module) -> bool:
    """Return whether :func:`convert` was applied to this network, and not undone."""
    return _MARK in vars(net)


def freeze(net: nn.Module, names: Iterable[str]) -> None:
    """Turn off the gradients of parameters of a converted network until :func:`unconvert`."""
    for name in names:
        owner, _, key = name.rpartition(".")
        module = net.get_submodule(owner)
        parameter = module.get_parameter(key)
        if parameter.requires_grad:
            parameter.requires_grad_(False)
            vars(net)[_MARK].frozen.append((module, key))


def unconvert(net: nn.Module) -> nn.Module:
    """Make a converted network plain again, in place, and return it; its learner is void then."""
    for root in net.modules():
        conversion = vars(root).pop(_MARK, None)
        if conversion is None:
            continue
        for module, cls in conversion.touched:
            for key in ("active", "mask_source", "frozen"):
                vars(module).pop(key, None)
            module.__class__ = cls
        for module, key in conversion.frozen:
            module.get_parameter(key).requires_grad_(True)
    return net


def export_subnet(learner: HyperMask, task: int) -> nn.Module:
    """Return a plain copy of the target network with the masks of a task multiplied in.

    The copy has the class of the original network, is in evaluation mode and does not need this
    package. With ``bn="per_task"`` it holds the task's normalisation. Outputs that the task has no
    classes for, which the learner gives as -inf, are those of the shared layer here.

    Args:
        learner: The learner; it is not changed.
        task: A task that was added.

    Raises:
        ValueError: The task was not added.
        RuntimeError: The learner has seen no input, so that the unmasked bias is not known yet.
    """
    weights = learner.task_weights(task)
    net = unconvert(copy.deepcopy(learner.net))
    learner.install_norms(net, task)
    parameters = dict(net.named_parameters())
    for name, value in weights.items():
        parameters[name].data.copy_(value)
    for module in net.modules():
        # Layers that their author masked by hand.
        module.__class__ = _PLAIN.get(type(module), type(module))
    return net.eval()
