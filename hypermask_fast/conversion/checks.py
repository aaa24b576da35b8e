"""What is refused before a network is converted, by name and with the way out."""

from __future__ import annotations

from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from hypermask_fast.conversion.entries import matches
from hypermask_fast.errors import ConfigError
from hypermask_fast.layers.dropouts import TaskDropout
from hypermask_fast.layers.masked import MASKED_LAYERS
from hypermask_fast.layers.norms import TASK_NORMS, TaskNorm

CLASSES: dict[type[nn.Module], type[nn.Module]] = {
    **MASKED_LAYERS,
    # Layers that the user masked by hand have their class already.
    **{cls: cls for cls in MASKED_LAYERS.values()},
    **TASK_NORMS,
}
"""The classes with parameters that are converted, and what each becomes."""
MARK = "_hypermask_fast_conversion"
"""An attribute of a converted network: what unconvert() has to undo."""
_READS_WEIGHTS = (nn.TransformerEncoderLayer, nn.MultiheadAttention)


def _join(module: str, key: str) -> str:
    return f"{module}.{key}" if module else key


def check_patterns(net: nn.Module, exclude: tuple[str, ...]) -> None:
    """Raise ConfigError where a pattern matches nothing."""
    modules = [name for name, _ in net.named_modules(remove_duplicate=False) if name]
    names = [*modules, *(name for name, _ in net.named_parameters(remove_duplicate=False))]
    for pattern in exclude:
        if not any(matches(name, [pattern]) for name in names):
            raise ConfigError(
                f"exclude={pattern!r} matches no module or parameter; the modules are "
                f"{', '.join(modules)}"
            )


def check_parameters(net: nn.Module, exclude: tuple[str, ...]) -> None:
    """Raise ConfigError where a parameter is tied, has no shape yet, or is no floating number."""
    first: dict[int, str] = {}
    for name, parameter in net.named_parameters(remove_duplicate=False):
        other = first.setdefault(id(parameter), name)
        excluded = matches(name, exclude)
        if other != name and not (excluded and matches(other, exclude)):
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
    if type(module) in CLASSES:
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
        MARK in own
        or isinstance(module, TaskNorm | TaskDropout)
        or ("mask_source" in own and "active" not in own)
    )


def check_modules(net: nn.Module, exclude: tuple[str, ...]) -> None:
    """Raise ConfigError where a module cannot be converted, or belongs to a learner already."""
    for name, module in net.named_modules():
        if _belongs(module):
            raise ConfigError(
                f"{name or f'this {type(net).__name__}'} belongs to a learner already; "
                "unconvert() it or build a second network"
            )
        if name and matches(name, exclude):
            continue
        if "active" in vars(module):
            raise ConfigError(
                f"{name or 'the network itself'} has a mask already; call its clear_mask() first"
            )
        own = [key for key, _ in module.named_parameters(recurse=False)]
        keys = {key for key in own if not matches(_join(name, key), exclude)}
        obstacle = _obstacle(module, keys)
        if obstacle:
            excluded = [name] if name else sorted(keys)
            fix = f", or pass exclude={excluded} to leave it as it is, frozen" if excluded else ""
            raise ConfigError(
                f"{name or 'the network itself'} is {obstacle}; build it from nn.Linear, "
                f"nn.Conv2d and normalisation layers{fix}"
            )
