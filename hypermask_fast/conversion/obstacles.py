"""Why a module cannot be converted, and the way out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.jit import ScriptModule
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from hypermask_fast.errors import ConfigError
from hypermask_fast.layers.norms import is_norm, norm_class
from hypermask_fast.layers.stand_ins import TaskLayer

_LOOKUPS = (nn.Embedding, nn.EmbeddingBag)
_COMPUTED = ("_orig", "_v")
"""What the names of the parameters that hooks compute a weight from end with."""


class Obstacle(NamedTuple):
    """What stands against the conversion of a module.

    Attributes:
        name: Of the module; "" for the network.
        why: What it is, after "is".
        fix: What to do about it.
        may_be_shared: The module runs as it is, with weights that all tasks share.
    """

    name: str
    why: str
    fix: str
    may_be_shared: bool = False

    @property
    def sentence(self) -> str:
        """What it is, and the fix, without an end."""
        return f"{self.name or 'the network itself'} is {self.why} ({self.fix})"


def _of_weights(module: nn.Module, keys: set[str]) -> tuple[str, str] | None:
    """Return why the weights of a module that runs cannot be replaced, and the way out."""
    own = set(module._parameters)
    if parametrize.is_parametrized(module):
        return (
            "whose weight is the result of a parametrization",
            "call torch.nn.utils.parametrize.remove_parametrizations first",
        )
    computed = sorted(
        key
        for key, value in vars(module).items()
        if isinstance(value, Tensor) and own & {f"{key}{end}" for end in _COMPUTED}
    )
    if computed:
        return (
            f"whose {computed[0]} hooks compute from {', '.join(sorted(own))}",
            "remove the weight norm, spectral norm or pruning first",
        )
    if isinstance(module, _LOOKUPS) and "weight" in keys:
        if module.max_norm is not None:
            return "whose max_norm changes its weight in place", "use max_norm=None"
        if module.sparse:
            return "whose sparse gradients no mask takes", "use sparse=False"
    return None


def _of_module(module: nn.Module, keys: set[str]) -> tuple[str, str] | None:
    """Return why a module cannot be converted at all, and the way out."""
    if "quantized" in type(module).__module__.split("."):
        return "which is quantised", "convert the network before it is quantised"
    if isinstance(module, TaskLayer) and "active" in vars(module):
        return "which has a mask already", "call its clear_mask() first"
    for key in sorted(keys):
        dtype = module._parameters[key].dtype  # type: ignore[union-attr]  # None has no key here.
        if not dtype.is_floating_point:
            return (
                f"whose {key} is {dtype}, which no mask multiplies",
                "convert the network before it is quantised",
            )
    if not is_norm(module):
        if getattr(module, "running_mean", None) is None:
            return None
        why = "with running statistics, which the tasks would share"
        return why, "use a normalisation of torch.nn"
    if "forward" in vars(module):
        return "whose forward was replaced on the instance", "make it a subclass"
    kind: Any = type(module)
    if norm_class(kind) is None:
        why = "with running statistics and a forward of its own"
        return why, "use a normalisation of torch.nn, or a subclass that keeps its forward"
    return None


def obstacle(name: str, module: nn.Module, keys: set[str], *, stays: bool) -> Obstacle | None:
    """Return what stands against the conversion of a module, or None.

    Args:
        name: Of the module.
        module: The module.
        keys: Names of its own parameters that are to be replaced.
        stays: The user wants the module as it is.
    """
    kind = f"a {type(module).__name__}"
    if isinstance(module, ScriptModule):
        why = f"{kind}, which TorchScript compiled"
        return None if stays else Obstacle(name, why, "convert the network before it is scripted")
    held = (*module._parameters.values(), *module._buffers.values())
    if any(value is not None and is_lazy(value) for value in held):
        return Obstacle(name, f"{kind}, which has no shape yet", "run one batch through it first")
    found = None if stays else _of_weights(module, keys)
    if found and not is_norm(module):
        return Obstacle(name, f"{kind}, {found[0]}", found[1], may_be_shared=True)
    found = found or (None if stays else _of_module(module, keys))
    return found and Obstacle(name, f"{kind}, {found[0]}", found[1])


def refuse(obstacles: Iterable[Obstacle], *, shares: bool) -> None:
    """Raise ConfigError, in one sentence, where there are obstacles.

    Args:
        obstacles: All of a network's.
        shares: Whether parameters may be trained for all tasks.
    """
    found = list(obstacles)
    if not found:
        return
    names = [each.name for each in found if each.name]
    ways = [f"exclude={names} to leave {'it' if len(names) == 1 else 'them'} plain and frozen"]
    if shares and all(each.may_be_shared for each in found):
        ways.append(f"shared={names} to train for all tasks")
    tail = f", or pass {' or '.join(ways)}" if names else ""
    raise ConfigError(
        f"{', and '.join(each.sentence for each in found)}; change that{tail}: "
        "hypermask_fast.conversion_report(net) lists all parts of the network"
    )
