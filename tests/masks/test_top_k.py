"""Masks of the largest scores: the published rule, by a selection that equals a stable sort."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hypermask_fast import reference
from hypermask_fast.backends.choice import backend
from hypermask_fast.masks import top_k
from hypermask_fast.native import library


def normal(n: int, g: torch.Generator) -> Tensor:
    return torch.randn(n, generator=g)


def gridded(n: int, g: torch.Generator) -> Tensor:
    return torch.randint(-3, 4, (n,), generator=g) / 4.0


def with_nan(n: int, g: torch.Generator) -> Tensor:
    scores = torch.randn(n, generator=g)
    scores[torch.rand(n, generator=g) < 0.3] = torch.nan
    return scores


def extreme(n: int, g: torch.Generator) -> Tensor:
    values = torch.tensor([0.0, -0.0, 1e-45, 3e38, torch.inf, -torch.inf, 2.0, 1e-20])
    return values[torch.randint(0, len(values), (n,), generator=g)]


def equal(n: int, g: torch.Generator) -> Tensor:
    return torch.full((n,), -0.5)


SCORES = [normal, gridded, with_nan, extreme, equal]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("make", SCORES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("passes", ["native", "pytorch"])
def test_the_selection_is_a_stable_sort(
    make: Callable[[int, torch.Generator], Tensor],
    dtype: torch.dtype,
    passes: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if passes == "pytorch":
        monkeypatch.setattr(library, "load", lambda: None)
    elif library.load() is None:
        pytest.skip(f"the native passes are not available: {library.status()}")
    generator = torch.Generator().manual_seed(0)
    # More than one block of the pass, and tensors of which all, none and one entry are kept.
    sizes = (40_000, 1, 90, 1, 7, 90)
    for share in (0.5, 0.1, 0.999, 0.0001):
        dropped = [top_k.dropped_count(n, share) for n in sizes]
        dropped[1], dropped[3], dropped[4] = 0, 1, 6
        scores = make(sum(sizes), generator).to(dtype)
        weights = [w.clone() for w in torch.randn(sum(sizes), dtype=dtype).split(sizes)]
        expected = reference.top_k_mask(scores, sizes, dropped)
        assert torch.equal(top_k.top_k_mask(scores, sizes, dropped), expected)
        products = top_k.top_k_weights(weights, scores, dropped)
        for product, w, mask in zip(products, weights, expected.split(sizes), strict=True):
            assert torch.equal(product, torch.where(mask, w, 0))
        products = top_k.threshold_weights(weights, scores)
        for product, w, part in zip(products, weights, scores.split(sizes), strict=True):
            assert torch.equal(product, torch.where(part >= 0, w, 0))


@pytest.mark.parametrize(
    ("entries", "share", "kept"),
    [(90, 0.3, 28), (320, 0.3, 96), (192, 0.3, 58), (48, 0.3, 15), (10, 0.1, 1)],
)
def test_the_published_number_is_kept(entries: int, share: float, kept: int) -> None:
    assert entries - top_k.dropped_count(entries, share) == kept


@pytest.mark.parametrize("name", ["auto", "reference"])
@pytest.mark.parametrize("rule", ["top_k", "threshold"])
def test_gradients_go_straight_through_to_every_score(name: str, rule: str) -> None:
    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(20_000, generator=generator).requires_grad_()
    weights = [torch.randn(150, 100, generator=generator), torch.randn(5000, generator=generator)]
    grads = [torch.randn(w.shape, generator=generator) for w in weights]
    with backend(name):
        if rule == "top_k":
            products = top_k.top_k_weights(weights, scores, [9000, 2000])
        else:
            products = top_k.threshold_weights(weights, scores)
        assert not any(p.is_set_to(w) for p, w in zip(products, weights, strict=True))
        (found,) = torch.autograd.grad(products, scores, grads, retain_graph=True)
        (first,) = torch.autograd.grad(products[:1], scores, grads[:1])
    expected = torch.cat([(g * w).flatten() for g, w in zip(grads, weights, strict=True)])
    if rule == "top_k":
        expected = expected * scores.detach().sign()
    assert torch.equal(found, expected)
    assert torch.equal(first[:15000], expected[:15000])
    assert not first[15000:].any()
