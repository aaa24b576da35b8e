"""Second derivatives of masked weights and layers by finite differences, whatever ran forward."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from hypermask_fast import reference
from hypermask_fast.layers import fused
from hypermask_fast.masks import cpu, cuda, plain
from hypermask_fast.masks.types import Mask, MaskRequest


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("engine", [cpu, cuda, plain])
@pytest.mark.parametrize("sparsity", [0.0, 30.0])
@pytest.mark.parametrize("masked_drift", [False, True])
def test_masked_weights(engine: ModuleType, sparsity: float, masked_drift: bool) -> None:
    old = randn(14).detach()

    def outputs(z: Tensor, w: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        request = MaskRequest([w, v], z, sparsity, (True, False), old, masked_drift)
        if engine is cpu and not cpu.runs(request):
            pytest.skip("there is no native library")
        found = engine.mask_weights(request)
        return found.products[0] * found.drift, found.products[1], found.drift

    w, v, wide = randn(2, 4), randn(6), randn(14, 2)
    for logits in (lambda wide: wide[:, 0], lambda wide: wide[:, 0].contiguous()):
        assert torch.autograd.gradgradcheck(
            lambda wide, w, v, logits=logits: outputs(logits(wide), w, v), (wide, w, v)
        )


@pytest.mark.parametrize("kind", ["linear", "conv2d"])
@pytest.mark.parametrize("with_bias_mask", [False, True])
def test_fused_layers(kind: str, with_bias_mask: bool) -> None:
    shape, inputs = ((4, 3), (2, 3)) if kind == "linear" else ((4, 3, 2, 2), (1, 3, 4, 4))
    x, weight, z, bias = randn(*inputs), randn(*shape), randn(*shape), randn(4)
    cut = reference.mask_threshold(z, 30.0)
    geometry: tuple[Any, ...] = () if kind == "linear" else ((1, 1, 1, 1),)
    layer = getattr(fused, f"masked_{kind}")

    def outputs(x: Tensor, weight: Tensor, bias: Tensor, z: Tensor, u: Tensor) -> Tensor:
        mask = Mask(z, u if with_bias_mask else None, cut, None)
        return layer(x, weight, bias, mask, *geometry)

    assert torch.autograd.gradgradcheck(outputs, (x, weight, bias, z, randn(4)))
