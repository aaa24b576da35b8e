"""Masks of the largest scores, their gradients and their bits, against NumPy's stable sort."""

from __future__ import annotations

from collections.abc import Iterator
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.support.kernel_checks import poisoned

pytest.importorskip("triton")

from hypermask_fast.backends import choice
from hypermask_fast.kernels import tuning
from hypermask_fast.kernels.masks import groups
from hypermask_fast.kernels.masks import top_k as kernel
from hypermask_fast.masks import packed, top_k

# One entry; one more than a block of these tests; several blocks; two entries; a full block.
SIZES = (1, 1025, 3000, 2, 1024)
SMALL = {"BLOCK": 1024, "num_warps": 4}


@pytest.fixture(autouse=True)
def _small_blocks() -> Iterator[None]:
    with (
        tuning.forced("select", SMALL),
        tuning.forced("top_k_forward", {"BLOCK": 512, "num_warps": 4}),
        tuning.forced("top_k_backward", {"BLOCK": 512, "num_warps": 4}),
        poisoned(),
    ):
        yield


def sorted_mask(scores: Tensor, sizes: tuple[int, ...], dropped: tuple[int, ...]) -> Tensor:
    """Return the published rule's mask by NumPy: ascending order, equal ones by their index."""
    masks = []
    for part, count in zip(scores.cpu().split(sizes), dropped, strict=True):
        order = np.argsort(np.abs(part.double().numpy()), kind="stable")
        kept = np.ones(len(part), bool)
        kept[order[:count]] = False
        masks.append(torch.from_numpy(kept))
    return torch.cat(masks).to(scores.device)


def some_scores(kind: str) -> Tensor:
    count, generator = sum(SIZES), torch.Generator().manual_seed(1)
    scores = torch.randn(count, generator=generator)
    if kind == "every-magnitude":
        scores *= torch.logspace(-44, 37, count)
    if kind == "nan":
        scores[torch.rand(count, generator=generator) < 0.3] = -torch.nan
        scores[torch.rand(count, generator=generator) < 0.3] = torch.nan
    return {
        "equal": torch.full_like(scores, -0.5),
        "gridded": (4 * scores).round() / 4,
        "signed-zeros": torch.where(scores > 0, 0.0, -0.0),
        "infinite": torch.where(scores > 0, torch.inf, scores),
    }.get(kind, scores)


KINDS = ("normal", "equal", "gridded", "signed-zeros", "infinite", "every-magnitude", "nan")


@pytest.mark.parametrize("share", [0.5, 0.1, 0.999])
@pytest.mark.parametrize("kind", KINDS)
def test_masks_are_those_of_a_stable_sort(kind: str, share: float, device: torch.device) -> None:
    scores = some_scores(kind).to(device)
    dropped = tuple(top_k.dropped_count(size, share) for size in SIZES)
    # All of one tensor, and none of another.
    dropped = (1, *dropped[1:3], 0, dropped[4])
    expected = sorted_mask(scores, SIZES, dropped)
    products, kept = kernel.forward(None, scores, SIZES, dropped)
    assert not products
    assert kept is not None
    assert torch.equal(kept, expected)
    assert torch.equal(kernel.pack(kept), packed.pack(expected))


@pytest.mark.parametrize("rule", ["top_k", "threshold"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_products_and_gradients(dtype: torch.dtype, rule: str, device: torch.device) -> None:
    scores = some_scores("gridded").to(device)
    weights = [w.to(device, dtype) for w in torch.randn(sum(SIZES)).split(SIZES)]
    weights[2] = weights[2].view(60, 50)
    dropped = tuple(size // 3 for size in SIZES) if rule == "top_k" else None
    expected = scores >= 0 if dropped is None else sorted_mask(scores, SIZES, dropped)
    products, kept = kernel.forward(weights, scores, SIZES, dropped)
    assert kept is None
    for product, weight, own in zip(products, weights, expected.split(SIZES), strict=True):
        assert torch.equal(product, torch.where(own.view(weight.shape), weight, 0))
    grads: list[Tensor | None] = [torch.randn(w.shape).to(device, dtype) for w in weights]
    grads[2] = torch.randn(50, 60).to(device, dtype).t()
    grads[1] = None
    found = kernel.backward(weights, scores, grads, dropped is not None)
    exact = torch.cat(
        [
            (torch.zeros_like(w) if g is None else g).float().flatten() * w.float().flatten()
            for g, w in zip(grads, weights, strict=True)
        ]
    )
    assert torch.equal(found, exact * scores.sign() if rule == "top_k" else exact)


def test_more_tensors_than_a_launch_takes(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(groups, "_TENSORS", 2)
    sizes = (11, 900, 7, 1300, 1)
    scores = torch.randn(sum(sizes), device=device).round()
    dropped = tuple(top_k.dropped_count(size, 0.3) for size in sizes)
    weights = [w.clone() for w in torch.randn(sum(sizes), device=device).split(sizes)]
    products, _ = kernel.forward(weights, scores, sizes, dropped)
    expected = sorted_mask(scores, sizes, dropped).split(sizes)
    for product, weight, kept in zip(products, weights, expected, strict=True):
        assert torch.equal(product, torch.where(kept, weight, 0))


@pytest.mark.parametrize("entries", [1, 7, 8, 4095, 4096, 5003])
def test_bits(entries: int, device: torch.device) -> None:
    mask = torch.rand(entries, device=device) < 0.3
    assert torch.equal(kernel.pack(mask), packed.pack(mask))
    assert torch.equal(packed.unpack(kernel.pack(mask), entries), mask)


def test_the_learners_way_takes_the_kernels(device: torch.device) -> None:
    """As on CUDA: the choice is made by the device alone."""
    scores = some_scores("normal").to(device).requires_grad_()
    weights = [w.clone().to(device) for w in torch.randn(sum(SIZES)).split(SIZES)]
    dropped = [size // 2 for size in SIZES]
    grads = [torch.randn_like(w) for w in weights]
    plain = top_k.top_k_weights(weights, scores, dropped)
    (expected,) = torch.autograd.grad(plain, scores, grads)
    mask = top_k.top_k_mask(scores, SIZES, dropped)
    with mock.patch.object(choice, "_why_no_kernel", return_value=None):
        products = top_k.top_k_weights(weights, scores, dropped)
        (found,) = torch.autograd.grad(products, scores, grads)
        assert torch.equal(top_k.top_k_mask(scores, SIZES, dropped), mask)
        bits = packed.pack(mask)
    assert torch.equal(found, expected)
    assert torch.equal(packed.unpack(bits, len(mask)), mask)
    for product, other in zip(products, plain, strict=True):
        assert torch.equal(product, other)
