"""Masked layers, their inputs and logits, and the plain layers that they stand in for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hypermask_fast import reference
from hypermask_fast.layers.masked import MaskedConv2d, MaskedLinear


def linear(**options: Any) -> MaskedLinear:
    return MaskedLinear(6, 4, **options)


def conv(**options: Any) -> MaskedConv2d:
    return MaskedConv2d(2, 4, 3, **options)


def batch_for(layer: nn.Module) -> Tensor:
    return torch.randn(3, 2, 7, 8) if isinstance(layer, nn.Conv2d) else torch.randn(3, 6)


def logits_for(layer: Any) -> tuple[Tensor, Tensor | None]:
    """Mask logits that are results of autograd, as those of a hypernetwork."""
    leaves = [None if p is None else torch.randn(p.shape) for p in (layer.weight, layer.bias)]
    weight, bias = (None if z is None else 2 * z.requires_grad_() for z in leaves)
    assert weight is not None
    return weight, bias


def masked_values(layer: Any, zw: Tensor, zb: Tensor | None, p: float) -> dict[str, Tensor]:
    """The layer's parameters times their masks, by name."""
    values = {}
    for name, z in (("weight", zw), ("bias", zb)):
        value = getattr(layer, name)
        if value is not None:
            values[name] = value
        if z is not None:
            values[name] = value * reference.semi_binary_mask(z, reference.mask_threshold(z, p))
    return values


def plain_of(layer: Any) -> Any:
    """A plain layer built by the constructor alone, with the same parameters."""
    names = "in_features out_features"
    if isinstance(layer, nn.Conv2d):
        names = "in_channels out_channels kernel_size stride padding dilation groups padding_mode"
    options = {name: getattr(layer, name) for name in names.split()}
    plain = layer.plain(**options, bias=layer.bias is not None, dtype=layer.weight.dtype)
    plain.load_state_dict(layer.state_dict())
    return plain


def gradients(out: Tensor, *inputs: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(out.square().sum(), inputs, retain_graph=True))


each_layer = pytest.mark.parametrize(
    "make", [pytest.param(linear, id="linear"), pytest.param(conv, id="conv2d")]
)


Make = Callable[..., Any]
