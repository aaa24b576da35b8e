"""Batches through a learner's network: their checks, other weights, what the last layer reads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call


def check_devices(device: torch.device, **values: Tensor) -> None:
    """Raise ValueError where a value is not on the learner's device, TypeError if no tensor."""
    for name, value in values.items():
        if not isinstance(value, Tensor):
            raise TypeError(
                f"{name} are a {type(value).__name__}; give a tensor, which torch.as_tensor makes "
                "of an array or a list"
            )
        if value.device != device:
            raise ValueError(
                f"{name} are on {value.device} and the learner on {device}; move them to one device"
            )


def check_labels(x: Tensor, y: Tensor) -> None:
    """Raise ValueError where there is not one int64 label for each of at least one row."""
    if y.shape != x.shape[:1] or y.dtype != torch.int64:
        raise ValueError(
            f"labels are {y.dtype} of shape {tuple(y.shape)} for inputs of shape "
            f"{tuple(x.shape)}; give int64 labels, one for each row"
        )
    if not len(y):
        raise ValueError(f"inputs have shape {tuple(x.shape)}; a loss needs at least one row")


class WithWeights(nn.Module):
    """Calls a network with other weights, by name, in place of its own."""

    def __init__(self, net: nn.Module, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.net, self._weights = net, dict(weights)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return functional_call(self.net, self._weights, args, kwargs, strict=False)


def sum_of(weights: Iterable[Mapping[str, Tensor]], alpha: Tensor) -> dict[str, Tensor]:
    """Return the sum of weights by name, each set of them times its factor of alpha."""
    total: dict[str, Tensor] = {}
    for factor, each in zip(alpha, weights, strict=True):
        for name, value in each.items():
            total[name] = total[name] + factor * value if name in total else factor * value
    return total


def read_by_last_layer(net: nn.Module, run: Callable[[], object]) -> Tensor:
    """Return what the module with parameters of its own that runs last in ``run()`` is given."""
    read: list[Tensor] = []
    hooks = [
        module.register_forward_pre_hook(lambda _, given: read.append(given[0]))
        for module in net.modules()
        if next(module.parameters(recurse=False), None) is not None
    ]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return read[-1]
