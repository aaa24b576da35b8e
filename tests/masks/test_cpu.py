"""Masked weights of a whole network in one native pass, against numpy and the specification."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hypermask_fast import reference
from hypermask_fast.functional import backend
from hypermask_fast.masks.types import MaskedTensors, MaskRequest
from hypermask_fast.masks.weights import mask_weights
from hypermask_fast.native import library, threads

# One entry; a row; several blocks of the native pass, the last one short; a tensor of one block.
SHAPES = [(1,), (7, 5), (3, 16384), (5461, 3), (64, 256)]
SIZES = [int(np.prod(shape)) for shape in SHAPES]
DTYPES = [pytest.param(d, id=str(d)[6:]) for d in (torch.float32, torch.float64)]


@pytest.fixture(autouse=True)
def _native() -> None:
    if library.load() is None:
        pytest.skip(library.status())


def tensors(dtype: torch.dtype, seed: int = 0, scale: float = 1.0) -> tuple[list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.randn(s, generator=generator, dtype=dtype) for s in SHAPES]
    return weights, scale * torch.randn(sum(SIZES), generator=generator, dtype=dtype)


def native(*arguments: Any) -> MaskedTensors:
    return mask_weights(MaskRequest(*arguments))


def plain(*arguments: Any) -> MaskedTensors:
    with backend("reference"):
        return mask_weights(MaskRequest(*arguments))


def assert_kept_from(values: Tensor, masks: Tensor, sparsity: float) -> None:
    """Check masks bit by bit, given the values |tanh z| before the percentile."""
    quantile = np.percentile(values.double().numpy(), sparsity)
    threshold = torch.tensor(quantile).to(values.dtype)
    assert torch.equal(masks, torch.where(values >= threshold, values, 0))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sparsity", [0.5, 30.0, 50.0, 99.99, 100.0])
def test_each_tensor_keeps_what_reaches_its_percentile(sparsity: float, dtype: torch.dtype) -> None:
    weights, logits = tensors(dtype)
    everything = [True] * len(SHAPES)
    values = native(weights, logits, 0.0, everything).masks
    result = native(weights, logits, sparsity, everything)
    for weight, value, mask, product in zip(
        weights, values, result.masks, result.products, strict=True
    ):
        assert_kept_from(value, mask, sparsity)
        assert torch.equal(product, weight * mask)


@pytest.mark.parametrize(
    "values",
    [
        pytest.param(torch.zeros(20_000), id="zeros"),
        pytest.param(torch.full((20_000,), -1e9), id="saturated"),
        pytest.param(torch.arange(20_000) % 3 - 1.0, id="ties"),
        pytest.param(torch.arange(20_000) * 1e-42, id="subnormal"),
        pytest.param(10.0 ** torch.arange(-60, 40, 0.005), id="all-magnitudes"),
    ],
)
@pytest.mark.parametrize("sparsity", [1.0, 33.3, 50.0, 100.0])
def test_unusual_logits(values: Tensor, sparsity: float) -> None:
    weight = torch.ones(len(values))
    (before,) = native([weight], values, 0.0, [True]).masks
    (mask,) = native([weight], values, sparsity, [True]).masks
    assert_kept_from(before, mask, sparsity)


def test_nan_stays_nan() -> None:
    logits = torch.arange(1.0, 11)
    logits[3] = torch.nan
    for sparsity in (0.0, 40.0, 95.0, 100.0):
        (expected,) = plain([torch.ones(10)], logits, sparsity, [True]).masks
        (mask,) = native([torch.ones(10)], logits, sparsity, [True]).masks
        assert mask[3].isnan()
        assert torch.equal(mask.nan_to_num(-1) > 0, expected.nan_to_num(-1) > 0)


def test_tanh_is_within_two_units_in_the_last_place() -> None:
    logits = torch.cat(
        (
            torch.linspace(-12, 12, 400_000),
            torch.logspace(-40, 1, 200_000),
            torch.tensor([0.0, torch.inf, -torch.inf]),
        )
    )
    (mask,) = native([torch.ones_like(logits)], logits, 0.0, [True]).masks
    exact = np.abs(np.tanh(logits.double().numpy()))
    ulp = np.spacing(exact.astype(np.float32)).astype(np.float64)
    assert np.abs(mask.double().numpy() - exact).max() <= 1
    assert (np.abs(mask.double().numpy() - exact) / ulp).max() <= 2


@pytest.mark.parametrize("masked_drift", [True, False])
@pytest.mark.parametrize("sparsity", [0.0, 30.0])
def test_values_and_gradients_in_float64(sparsity: float, masked_drift: bool) -> None:
    weights, logits = tensors(torch.float64)
    logits[5] = 0
    previous = torch.cat([w.flatten() for w in weights]) + 0.1 * logits.flip(0)
    masked = [True, True, False, True, True]
    upstream, _ = tensors(torch.float64, seed=1)
    found = []
    for function in (native, plain):
        leaves = [w.clone().requires_grad_() for w in weights]
        z = logits.clone().requires_grad_()
        result = function(leaves, z, sparsity, masked, previous, masked_drift)
        loss = 0.7 * result.drift
        for product, g in zip(result.products, upstream, strict=True):
            loss = loss + (product * g).sum()
        loss.backward()
        found.append(
            [*result.products, *result.masks, result.drift, z.grad, *(leaf.grad for leaf in leaves)]
        )
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
    assert result.products[2] is leaves[2]


def test_gradients_in_float32_are_as_exact_as_the_specification() -> None:
    weights, logits = tensors(torch.float32)
    previous = torch.cat([w.flatten() for w in weights]) - 0.01
    errors = []
    exact: list[Tensor] = []
    for function, dtype in (
        (plain, torch.float64),
        (plain, torch.float32),
        (native, torch.float32),
    ):
        leaves = [w.to(dtype, copy=True).requires_grad_() for w in weights]
        z = logits.to(dtype, copy=True).requires_grad_()
        result = function(leaves, z, 0.0, [True] * 5, previous.to(dtype))
        (sum(p.square().sum() for p in result.products) + result.drift).backward()
        found = [result.drift.detach(), z.grad, *(leaf.grad for leaf in leaves)]
        if not exact:
            exact = found
        errors.append([float((f - e).norm() / e.norm()) for f, e in zip(found, exact, strict=True)])
    for ours, theirs in zip(errors[2], errors[1], strict=True):
        assert ours <= 2 * theirs + 2**-24


def test_what_needs_no_gradient_gets_none_and_unused_products_count_as_zero() -> None:
    weights, logits = tensors(torch.float32)
    weights[0].requires_grad_()
    logits.requires_grad_()
    result = native(weights, logits, 30.0, [True] * 5)
    result.products[1].sum().backward()
    assert [w.grad is None for w in weights] == [False, True, True, True, True]
    assert not weights[0].grad.any()
    start, end = SIZES[0], SIZES[0] + SIZES[1]
    assert logits.grad[start:end].any()
    assert not logits.grad[:start].any()
    assert not logits.grad[end:].any()


def test_bits_do_not_depend_on_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    weights, logits = tensors(torch.float32, scale=0.1)
    previous = torch.zeros_like(logits)
    expected: list[Tensor] = []
    for count, team in ((1, True), (2, True), (5, True), (3, False)):
        if not team:
            monkeypatch.setattr(threads, "_team", lambda: None)
        monkeypatch.setattr(torch, "get_num_threads", lambda count=count: count)
        z = logits.clone().requires_grad_()
        result = native(weights, z, 30.0, [True] * 5, previous)
        (result.drift + sum(p.sum() for p in result.products)).backward()
        found = [result.drift.detach(), *result.masks, z.grad]
        expected = expected or found
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda w, z: ([x.bfloat16() for x in w], z), id="bfloat16-weights"),
        pytest.param(lambda w, z: ([w[0], w[1].t(), *w[2:]], z), id="transposed-weight"),
        pytest.param(lambda w, z: (w, z.repeat_interleave(2)[::2]), id="strided-logits"),
    ],
)
def test_other_layouts_give_the_same(change: object) -> None:
    weights, logits = tensors(torch.float32)
    weights, logits = change(weights, logits)  # type: ignore[operator]
    result = native(weights, logits, 30.0, [True] * 5)
    expected = plain(weights, logits, 30.0, [True] * 5)
    for ours, theirs in zip(result.products, expected.products, strict=True):
        assert ours.dtype == theirs.dtype
        # Entries on either side of a percentile that differs by a unit in the last place.
        different = (ours != 0) != (theirs != 0)
        assert int(different.sum()) <= 2
        torch.testing.assert_close(ours[~different], theirs[~different])


def test_threshold_of_the_specification_agrees() -> None:
    logits = torch.randn(50_001, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    (mask,) = native([torch.ones_like(logits)], logits, 30.0, [True]).masks
    threshold = reference.mask_threshold(logits, 30.0)
    assert int((mask > 0).sum()) == int((logits.tanh().abs() >= threshold).sum())
