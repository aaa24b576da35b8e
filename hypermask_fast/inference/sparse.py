"""2:4 sparsity, which matrix units of GPUs since sm_80 multiply at twice the rate.

Of every 4 consecutive inputs of a product, each output reads at most 2.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.rnn import RNNBase, RNNCellBase

from hypermask_fast.errors import ConfigError, shown

_ATTENTION = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


class Pruned(NamedTuple):
    """What :func:`prune_2_4` did.

    Attributes:
        names: Of the weights.
        weights: Their entries.
        zeros: Those that became 0 and were not before.
    """

    names: tuple[str, ...]
    weights: int
    zeros: int


def keep_2_of_4(weight: Tensor) -> Tensor:
    """Return which entries stay: in every group of 4 consecutive inputs the 2 largest |w|.

    Of equal ones the first stay. Where the inputs are no multiple of 4, the last group is filled up
    with zeros, so that of 3 remaining inputs 2 stay, and of fewer all.

    Args:
        weight: (outputs, inputs, ...), of a linear layer or a convolution.

    Returns:
        A mask of its shape, bool.

    Raises:
        ConfigError: It is no floating-point tensor of at least two dimensions.
    """
    if not isinstance(weight, Tensor) or not weight.is_floating_point() or weight.dim() < 2:
        raise ConfigError(
            f"weight is {shown(weight)}; give a floating-point tensor (outputs, inputs, ...)"
        )
    inputs = weight.shape[1]
    last = weight.detach().abs().movedim(1, -1)
    # What fills the last group up comes after every entry, of the same size too.
    groups = F.pad(last, (0, -inputs % 4), value=-1.0).unflatten(-1, (-1, 4))
    order = groups.argsort(dim=-1, descending=True, stable=True)
    mask = torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, order[..., :2], True)
    return mask.flatten(-2)[..., :inputs].movedim(-1, 1)


@torch.no_grad()
def prune_2_4(net: nn.Module) -> Pruned:
    """Set the weights of a plain network to 0 that :func:`keep_2_of_4` does not keep, in place.

    Those of linear layers, convolutions (not transposed ones), attention and recurrent layers.

    Args:
        net: The network, such as one of :func:`hypermask_fast.export_subnet`.
    """
    names, count, zeros = [], 0, 0
    for name, weight in _weights(net):
        dropped = ~keep_2_of_4(weight)
        zeros += int((dropped & (weight != 0)).sum())
        count += weight.numel()
        weight.masked_fill_(dropped, 0)
        names.append(name)
    return Pruned(tuple(names), count, zeros)


def _weights(net: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the weights (outputs, inputs, ...) of a network, each once."""
    seen: set[int] = set()
    for name, module in net.named_modules():
        keys: tuple[str, ...] = ()
        is_conv = isinstance(module, _ConvNd) and not isinstance(module, _ConvTransposeNd)
        if is_conv or isinstance(module, nn.Linear):
            keys = ("weight",)
        elif isinstance(module, nn.MultiheadAttention):
            keys = _ATTENTION
        elif isinstance(module, RNNBase | RNNCellBase):
            keys = tuple(key for key in module._parameters if key.startswith("weight_"))
        for key in keys:
            parameter = module._parameters.get(key)
            if parameter is not None and id(parameter) not in seen:
                seen.add(id(parameter))
                yield f"{name}.{key}".lstrip("."), parameter
