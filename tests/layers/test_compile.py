"""Masked layers and functions under torch.compile: one graph, compiled once, equal to eager."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter, CompileCounterWithBackend

from hypermask_fast import functional, reference
from hypermask_fast.backends import choice
from hypermask_fast.errors import ConfigError
from hypermask_fast.kernels import tuning
from hypermask_fast.layers.masked import MaskedConv2d, MaskedLinear, MaskedWeights


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def set_logits(layer: Any, z: list[Tensor], sparsity: float) -> None:
    layer.set_mask(*z, sparsity=sparsity)


def set_products(layer: Any, z: list[Tensor], sparsity: float) -> None:
    cuts = [functional.mask_threshold(part, sparsity) for part in z]
    products, _ = reference.mask_weights([layer.weight, layer.bias], z, cuts)
    layer.active = MaskedWeights(*products)


def mask_layers(net: nn.Module, flat: Tensor, setter: Callable[..., None], p: float) -> None:
    """Mask every layer with its part of the flat logits."""
    for layer in net.modules():
        if isinstance(layer, (MaskedLinear, MaskedConv2d)):
            z = []
            for parameter in (layer.weight, layer.bias):
                part, flat = flat[: parameter.numel()], flat[parameter.numel() :]
                z.append(part.view(parameter.shape))
            setter(layer, z, p)


NETS = [
    pytest.param(lambda: MaskedLinear(6, 4), (3, 6), id="linear"),
    pytest.param(lambda: MaskedConv2d(2, 4, 3, padding="same"), (2, 2, 5, 6), id="conv2d"),
    pytest.param(
        lambda: nn.Sequential(
            MaskedConv2d(2, 4, 3, stride=2, padding=1, padding_mode="reflect"),
            nn.ReLU(),
            nn.Flatten(),
            MaskedLinear(36, 3),
        ),
        (2, 2, 5, 6),
        id="network",
    ),
]


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize(
    ("setter", "sparsity"),
    [
        pytest.param(set_logits, 30.0, id="logits"),
        pytest.param(set_logits, 0.0, id="logits-p0"),
        pytest.param(set_products, 30.0, id="products"),
    ],
)
@pytest.mark.parametrize(("make", "shape"), NETS)
def test_equals_eager_in_one_compilation_over_many_masks(
    make: Callable[[], nn.Module],
    shape: tuple[int, ...],
    setter: Callable[..., None],
    sparsity: float,
    backend: str,
) -> None:
    net = make()
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(net, backend=counter, fullgraph=True)
    embedding = torch.randn(3, requires_grad=True)
    head = torch.randn(sum(p.numel() for p in net.parameters()), 3)
    x = torch.randn(shape, requires_grad=True)
    leaves = [x, embedding, *net.parameters()]
    for task in range(10):
        mask_layers(net, head @ (embedding + task), setter, sparsity)
        out, expected = compiled(x), net(x)
        assert torch.equal(out, expected)
        ours, theirs = (
            torch.autograd.grad(y.square().sum(), leaves, retain_graph=True)
            for y in (out, expected)
        )
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b)
    assert counter.frame_count == 1


def test_no_mask_then_a_mask() -> None:
    layer = MaskedLinear(6, 4)
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    x = torch.randn(3, 6)
    plain = nn.functional.linear(x, layer.weight, layer.bias)
    assert torch.equal(compiled(x), plain)
    layer.set_mask(torch.randn(4, 6), sparsity=50)
    assert torch.equal(compiled(x), layer(x))
    assert not torch.equal(compiled(x), plain)
    layer.clear_mask()
    assert torch.equal(compiled(x), plain)


def test_sparsity_as_a_tensor_never_recompiles() -> None:
    counter = CompileCounter()
    compiled = torch.compile(functional.semi_binary_mask, backend=counter, fullgraph=True)
    logits = torch.randn(101, requires_grad=True)
    for p in range(0, 101, 10):
        mask = compiled(logits, torch.tensor(float(p)))
        assert int((mask == 0).sum()) == p
        (grad,) = torch.autograd.grad(mask.sum(), logits)
        assert int((grad == 0).sum()) == p
    assert counter.frame_count == 1


def test_a_mask_that_does_not_fit_is_refused_while_compiling() -> None:
    compiled = torch.compile(functional.masked_linear, backend="eager")
    x, weight = torch.randn(2, 3), torch.randn(4, 3)
    with pytest.raises(ValueError, match=r"weight_logits has shape \(1, 3\)"):
        compiled(x, weight, None, weight[:1])


@pytest.mark.parametrize("compiled_before", [False, True])
def test_a_forced_backend_that_cannot_run_is_refused_by_compiled_code(
    compiled_before: bool,
) -> None:
    compiled = torch.compile(functional.masked_linear, backend="eager")
    x, weight = torch.randn(2, 3), torch.randn(4, 3)
    if compiled_before:
        compiled(x, weight, None, weight)
    with (
        functional.backend("triton"),
        pytest.raises(ConfigError, match="the kernel of masked_linear runs on CUDA tensors"),
    ):
        compiled(x, weight, None, weight)


def test_auto_chooses_without_a_graph_break(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on CUDA, where it would look up in a file what was measured."""
    monkeypatch.setattr(choice, "_why_no_kernel", lambda op, tensor: None)
    monkeypatch.setattr(tuning, "knows", lambda device: tuning.TABLE.exists())
    linear, x, weight = functional.masked_linear, torch.randn(2, 3), torch.randn(4, 3)
    found = torch.compile(linear, backend="eager", fullgraph=True)(x, weight, None, weight)
    torch.testing.assert_close(found, reference.masked_linear(x, weight, None, weight))
    conv2d, image, kernel = (
        functional.masked_conv2d,
        torch.randn(2, 3, 5, 5),
        torch.randn(4, 3, 2, 2),
    )
    found = torch.compile(conv2d, backend="eager", fullgraph=True)(image, kernel, None, kernel)
    torch.testing.assert_close(found, reference.masked_conv2d(image, kernel, None, kernel))
