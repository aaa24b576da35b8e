"""The output layer of a network that is not converted."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hypermask_fast.errors import ConfigError, shown
from hypermask_fast.methods.batches import run
from hypermask_fast.methods.evaluating import evaluating


def output_layer(net: nn.Module, input_shape: Sequence[int]) -> tuple[Tensor, str, int]:
    """Return a parameter of a network, the name of its layer that runs last, and its outputs.

    Args:
        net: The network, which runs once in evaluation mode.
        input_shape: Of one input.

    Raises:
        ConfigError: It has no parameters, inputs of the shape do not run through it, or what runs
            last is no linear or convolutional layer.
    """
    if not isinstance(net, nn.Module):
        raise ConfigError(f"net is {shown(net)}; give a torch.nn.Module")
    like = next(net.parameters(), None)
    if like is None:
        raise ConfigError(f"net is a {type(net).__name__} without parameters; give one with some")
    ran: list[str] = []
    hooks = [
        module.register_forward_pre_hook(lambda *_, name=name: ran.append(name))
        for name, module in net.named_modules()
        if next(module.parameters(recurse=False), None) is not None
    ]
    x = torch.zeros(2, *input_shape, device=like.device, dtype=like.dtype)
    try:
        with evaluating(net):
            outputs = run(net, x)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    finally:
        for hook in hooks:
            hook.remove()
    if not ran or not isinstance(net.get_submodule(ran[-1]), nn.Linear | nn.Conv2d):
        raise ConfigError(
            f"what runs last in the {type(net).__name__} is {ran[-1] if ran else 'nothing'!r}; "
            "give a network whose last layer is an nn.Linear or nn.Conv2d"
        )
    return like, ran[-1], outputs.shape[-1]
