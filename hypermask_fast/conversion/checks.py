"""What is looked at before a network is converted, beside its parts."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from hypermask_fast.errors import ConfigError, warn_caller
from hypermask_fast.layers.dropouts import TaskDropout
from hypermask_fast.layers.general import GeneralModule
from hypermask_fast.layers.norms import TaskNorm
from hypermask_fast.layers.stand_ins import TaskLayer

MARK = "_hypermask_fast_conversion"
"""An attribute of a converted network: what unconvert() has to undo."""


def _belongs(module: nn.Module) -> bool:
    own = vars(module)
    is_masked = isinstance(module, TaskLayer) and "mask_source" in own and "active" not in own
    return MARK in own or is_masked or isinstance(module, TaskNorm | TaskDropout | GeneralModule)


def check_free(net: nn.Module) -> None:
    """Raise ConfigError where a part of a network belongs to a learner already."""
    for name, module in net.named_modules():
        if _belongs(module):
            raise ConfigError(
                f"{name or f'this {type(net).__name__}'} belongs to a learner already; "
                "unconvert() it or build a second network"
            )


def warn_shared(net: nn.Module, names: Sequence[str]) -> None:
    """Warn of modules that cannot be masked and are trained for all tasks, though none named them.

    Args:
        net: The network.
        names: Of the modules.
    """
    if not names:
        return
    kinds = dict.fromkeys(type(net.get_submodule(name)).__name__ for name in names)
    warn_caller(
        f"{', '.join(names)} ({', '.join(kinds)}) cannot be masked, and what all tasks share is "
        f"trained there, held near the last task's by lam; pass shared={list(names)} if that is "
        "meant, or exclude= to freeze it"
    )
