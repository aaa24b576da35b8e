"""The registered operators and the autograd functions around them, on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from hypermask_fast import reference
from hypermask_fast.kernels import ops
from hypermask_fast.layers import fused
from hypermask_fast.masks import cuda
from hypermask_fast.masks.types import Mask, MaskRequest

GENERATOR = torch.Generator().manual_seed(0)


def randn(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=GENERATOR)


SIZES = [15, 4]
CUT, CUT_B = (torch.tensor(q, dtype=torch.float64) for q in (0.3, 0.4))
X, W, Z, B, ZB = randn(2, 3, 5), randn(4, 5), randn(4, 5), randn(4), randn(4)
IMAGE, KERNEL, ZK = randn(2, 4, 7, 6), randn(4, 2, 3, 2), randn(4, 2, 3, 2)
GEOMETRY = ([2, 1], [1, 0], [1, 2], 2)
OUT = reference.masked_conv2d(
    IMAGE, KERNEL, None, ZK, None, None, None, *map(tuple, GEOMETRY[:3]), 2
)
FLAT = randn(19)

CALLS: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "masked_linear": (ops.masked_linear, (X, W, B, Z, ZB, CUT, CUT_B)),
    "masked_linear-plain-bias": (ops.masked_linear, (X, W, B, Z, None, None, None)),
    "masked_linear_input": (ops.masked_linear_input, (randn(2, 3, 4), W, Z, CUT)),
    "masked_linear_weight": (ops.masked_linear_weight, (randn(2, 3, 4), X, W, Z, CUT)),
    "masked_linear_bias": (ops.masked_linear_bias, (randn(2, 3, 4), B, ZB, CUT)),
    "masked_linear_bias-plain": (ops.masked_linear_bias, (randn(2, 3, 4), B, None, None)),
    "masked_conv2d": (ops.masked_conv2d, (IMAGE, KERNEL, B, ZK, ZB, CUT, CUT, *GEOMETRY)),
    "masked_conv2d_input": (
        ops.masked_conv2d_input,
        (randn(*OUT.shape), IMAGE, KERNEL, ZK, CUT, *GEOMETRY),
    ),
    "masked_conv2d_weight": (
        ops.masked_conv2d_weight,
        (randn(*OUT.shape), IMAGE, KERNEL, ZK, CUT, *GEOMETRY),
    ),
    "masked_conv2d_bias": (ops.masked_conv2d_bias, (randn(*OUT.shape), B, ZB, CUT)),
    "hidden_grad": (ops.hidden_grad, (randn(9, 4), randn(3, 9))),
    "mask_thresholds": (ops.mask_thresholds, (FLAT, SIZES, CUT * 100, [True, False])),
    "mask_weights": (
        ops.mask_weights,
        ([randn(3, 5), randn(4)], FLAT, torch.stack((CUT, CUT)), [True, False], randn(19), True),
    ),
    "mask_weights_backward": (
        ops.mask_weights_backward,
        ([randn(3, 5), randn(4)], FLAT, None, [randn(3, 5), None], randn(19), False, CUT),
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_operator_is_registered_as_torch_wants_it(name: str) -> None:
    function, args = CALLS[name]
    torch.library.opcheck(function, args)


def gradients(function: Callable[..., Tensor], *args: Any) -> list[Tensor]:
    leaves = [a.clone().requires_grad_() if isinstance(a, Tensor) and a.dim() else a for a in args]
    y = function(*leaves)
    y.backward(torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y))
    return [y, *(leaf.grad for leaf in leaves if isinstance(leaf, Tensor) and leaf.requires_grad)]


def fused_linear(x: Tensor, weight: Tensor, bias: Tensor | None, *mask: Tensor | None) -> Tensor:
    return fused.masked_linear(x, weight, bias, Mask(*mask))


def fused_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
    return fused.masked_conv2d(x, weight, bias, Mask(*rest[:4]), rest[4:])


LAYERS = {
    "linear": (fused_linear, reference.masked_linear, (X, W, B, Z, ZB, CUT, CUT_B)),
    "linear-plain-bias": (
        fused_linear,
        reference.masked_linear,
        (X, W, B, Z, None, None, None),
    ),
    "linear-of-one-input": (
        fused_linear,
        reference.masked_linear,
        (X[0, 0], W, B, Z, ZB, CUT, CUT_B),
    ),
    "linear-without-inputs": (
        fused_linear,
        reference.masked_linear,
        (X[..., :0], W[:, :0], B, Z[:, :0], ZB, None, CUT_B),
    ),
    "linear-without-bias": (
        fused_linear,
        reference.masked_linear,
        (X[0], W, None, Z, None, CUT, None),
    ),
    **{
        f"conv2d-{name}": (
            fused_conv2d,
            reference.masked_conv2d,
            (image, KERNEL, B, ZK, ZB, CUT, None, *geometry),
        )
        for name, image, geometry in (
            ("plain", IMAGE, (1, 0, 1, 2)),
            ("strided", IMAGE, ((2, 1), (1, 2), 1, 2)),
            ("same", IMAGE, (1, "same", (2, 3), 2)),
            ("valid", IMAGE, (2, "valid", 1, 2)),
            ("unbatched", IMAGE[0], (1, 1, 1, 2)),
        )
    },
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("name", LAYERS)
def test_layers_and_their_gradients_equal_the_specification(name: str) -> None:
    function, plain, args = LAYERS[name]
    for found, expected in zip(gradients(function, *args), gradients(plain, *args), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["linear", "conv2d-strided"])
def test_compiled_layers_have_no_graph_break(name: str) -> None:
    function, _, args = LAYERS[name]
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    found = gradients(compiled, *args)
    for ours, expected in zip(found, gradients(function, *args), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


def test_what_needs_no_gradient_is_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("computed")

    x, weight, bias, logits, bias_logits = X.clone().requires_grad_(), W, B, Z, ZB
    for name in ("masked_linear_weight", "masked_linear_bias"):
        monkeypatch.setattr(ops, name, fail)
    fused_linear(x, weight, bias, logits, bias_logits, None, None).sum().backward()
    assert x.grad is not None


def test_autocast_rounds_the_inputs() -> None:
    x, w, z = randn(3, 5, dtype=torch.float32), W.float(), Z.float()
    with torch.autocast("cpu", torch.bfloat16):
        y = fused_linear(x, w, None, z, None, None, None)
        expected = reference.masked_linear(x, w, None, z)
    assert y.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(y, expected)


@pytest.mark.parametrize("sparsity", [0.0, 40.0])
def test_masked_weights_of_a_network(sparsity: float) -> None:
    weights, previous = [randn(3, 5), randn(4), randn(2)], randn(21)
    logits, masked = randn(21), (True, False, True)

    def plain(z: Tensor, *w: Tensor) -> Tensor:
        shaped = [part.view_as(x) for part, x in zip(z.split([15, 4, 2]), w, strict=True)]
        cuts = [
            reference.mask_threshold(part, sparsity) if sparsity and is_masked else None
            for part, is_masked in zip(shaped, masked, strict=True)
        ]
        products, masks = reference.mask_weights(w, shaped, cuts)
        old = [part.view_as(x) for part, x in zip(previous.split([15, 4, 2]), w, strict=True)]
        drift = reference.l1_drift(w, old, masks)
        return torch.cat([products[0].flatten(), products[2], drift[None]])

    def ours(z: Tensor, *w: Tensor) -> Tensor:
        products, _, drift = cuda.mask_weights(MaskRequest(w, z, sparsity, masked, previous))
        return torch.cat([products[0].flatten(), products[2], drift[None]])

    for found, expected in zip(
        gradients(ours, logits, *weights), gradients(plain, logits, *weights), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
