"""Operators return what their fakes promise to torch.compile, on a CPU and from the kernels."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from hypermask_fast.kernels import ops

Randn = Callable[..., Tensor]

IMAGES: dict[str, Callable[[Randn], Tensor]] = {
    "contiguous": lambda randn: randn(2, 3, 5, 4),
    "channels-last": lambda randn: randn(2, 5, 4, 3).permute(0, 3, 1, 2),
    "one-channel": lambda randn: randn(2, 5, 4, 1).permute(0, 3, 1, 2),
    "one-position": lambda randn: randn(2, 1, 1, 3).permute(0, 3, 1, 2),
    "part-of-a-row": lambda randn: randn(2, 3, 5, 6)[..., :4],
    "part-of-the-channels": lambda randn: randn(2, 5, 4, 5).permute(0, 3, 1, 2)[:, :3],
    "one-for-all": lambda randn: randn(1, 3, 5, 4).expand(2, -1, -1, -1),
    "rows-first": lambda randn: randn(2, 5, 3, 4).transpose(1, 2),
    "reversed": lambda randn: randn(4, 5, 3, 2).permute(3, 2, 1, 0),
}
FILTERS: dict[str, Callable[[Randn, int], Tensor]] = {
    "contiguous": lambda randn, channels: randn(2, channels, 3, 1),
    "channels-last": lambda randn, channels: randn(2, 3, 1, channels).permute(0, 3, 1, 2),
    "transposed": lambda randn, channels: randn(channels, 2, 3, 1).transpose(0, 1),
}
MATRICES: dict[str, Callable[[Randn], Tensor]] = {
    "contiguous": lambda randn: randn(4, 5),
    "transposed": lambda randn: randn(5, 4).t(),
    "part-of-a-row": lambda randn: randn(4, 7)[:, :5],
    "one-for-all": lambda randn: randn(1, 5).expand(4, -1),
}


def check(
    name: str, kernel: Callable[..., Any], make: Callable[[Randn], Any], device: torch.device
) -> Any:
    """Compare dtypes, shapes and strides of an operator's results."""
    operator = getattr(ops, name)
    promised = tree_leaves(operator(*make(partial(torch.randn, device="meta"))))
    found = tree_leaves(kernel(*make(partial(torch.randn, device=device))))
    plain = tree_leaves(operator(*make(partial(torch.randn, device="cpu"))))
    for results in (found, plain):
        for tensor, fake in zip(results, promised, strict=True):
            assert (tensor.dtype, tensor.shape) == (fake.dtype, fake.shape)
            # Those of sizes of 1 mean nothing.
            pairs = zip(tensor.stride(), fake.stride(), fake.shape, strict=True)
            assert all(stride == wanted for stride, wanted, size in pairs if size > 1), name


@pytest.mark.parametrize("filters", FILTERS)
@pytest.mark.parametrize("image", IMAGES)
def test_convolutions(image: str, filters: str, device: torch.device) -> None:
    def forward(randn: Randn) -> tuple[Any, ...]:
        x = IMAGES[image](randn)
        weight = FILTERS[filters](randn, x.shape[1])
        return x, weight, None, weight.clone(), None, None, None, *geometry

    def backward(randn: Randn) -> tuple[Any, ...]:
        x, weight, _, logits, *_ = forward(randn)
        grad = randn(2, 2, *x.shape[2:])
        return grad, x, weight, logits, None, *geometry

    geometry = ([1, 1], [1, 0], [1, 1], 1)
    check("masked_conv2d", ops._conv2d_kernel, forward, device)
    check("masked_conv2d_input", ops._conv2d_input_kernel, backward, device)
    check("masked_conv2d_weight", ops._conv2d_weight_kernel, backward, device)


@pytest.mark.parametrize("weights", MATRICES)
@pytest.mark.parametrize("inputs", MATRICES)
def test_linear_layers(inputs: str, weights: str, device: torch.device) -> None:
    def forward(randn: Randn) -> tuple[Any, ...]:
        x, weight = MATRICES[inputs](randn), MATRICES[weights](randn)
        return x, weight, None, MATRICES[weights](randn), None, None, None

    def of_input(randn: Randn) -> tuple[Any, ...]:
        _, weight, _, logits, *_ = forward(randn)
        return randn(4, 4).t(), weight, logits, None

    def of_weight(randn: Randn) -> tuple[Any, ...]:
        x, weight, _, logits, *_ = forward(randn)
        return randn(4, 4).t(), x, weight, logits, None

    check("masked_linear", ops._linear_kernel, forward, device)
    check("masked_linear_input", ops._linear_input_kernel, of_input, device)
    check("masked_linear_weight", ops._linear_weight_kernel, of_weight, device)


@pytest.mark.parametrize("filters", FILTERS)
@pytest.mark.parametrize("weights", MATRICES)
def test_all_weights_of_a_network(weights: str, filters: str, device: torch.device) -> None:
    def tensors(randn: Randn) -> list[Tensor]:
        return [MATRICES[weights](randn), FILTERS[filters](randn, 3), randn(8)[::2]]

    def forward(randn: Randn) -> tuple[Any, ...]:
        return tensors(randn), randn(42), None, [True, True, False], randn(42), True

    def backward(randn: Randn) -> tuple[Any, ...]:
        grads = [None, tensors(randn)[1], None]
        drift = randn(1)[0]
        return tensors(randn), randn(42), None, grads, randn(42), True, drift

    check("mask_weights", ops._mask_weights_kernel, forward, device)
    check("mask_weights_backward", ops._mask_weights_backward_kernel, backward, device)
