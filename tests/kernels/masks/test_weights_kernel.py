"""Masked weights of all tensors in one launch, their drift and gradients, against float64."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hypermask_fast import reference
from tests.support.kernel_checks import assert_as_exact, poisoned, rounding_bound

pytest.importorskip("triton")

import triton
import triton.language as tl

from hypermask_fast.kernels import tuning
from hypermask_fast.kernels.masks import weights as mask_weights
from hypermask_fast.kernels.masks.blocks import Blocks

# One entry; one more than a block of these tests; several blocks; a full block; the exempt bias.
SHAPES = [(1,), (25, 41), (3, 50, 5, 4), (64, 16), (10,)]
SIZES = [int(np.prod(shape)) for shape in SHAPES]
MASKED = [True, True, True, True, False]
CONFIG = {"BLOCK": 1024, "num_warps": 4}


@pytest.fixture(autouse=True)
def _small_blocks() -> Iterator[None]:
    with (
        tuning.forced("mask_weights_forward", CONFIG),
        tuning.forced("mask_weights_backward", CONFIG),
        poisoned(),
    ):
        yield


def inputs(dtype: torch.dtype, device: torch.device) -> tuple[list[Tensor], Tensor, Tensor]:
    """Weights, logits and thresholds; no mask value is within 1e-6 of a threshold."""
    weights = [torch.randn(shape, device=device).to(dtype) for shape in SHAPES]
    z = torch.randn(sum(SIZES), device=device)
    z[7] = 0
    z[20:25] = torch.tensor([50.0, -50.0, 1e-30, -torch.inf, 1e-3], device=device)
    thresholds = []
    for part, is_masked in zip(z.split(SIZES), MASKED, strict=True):
        values = part.double().tanh().abs().sort().values
        k = int(0.3 * (len(values) - 1))
        gap = values[k : k + 20].diff()
        wide = k + int(gap.argmax()) if len(gap) else 0
        between = values[wide : wide + 2].mean()
        thresholds.append(between if is_masked else torch.full_like(between, -torch.inf))
    thresholds[0] = torch.zeros_like(thresholds[0])
    return weights, z, torch.stack(thresholds).float()


def expected(
    weights: Sequence[Tensor],
    z: Tensor,
    thresholds: Tensor | None,
    grads: Sequence[Tensor | None],
    previous: Tensor | None,
    masked_drift: bool,
    drift_grad: Tensor | None,
    dtype: torch.dtype | None = None,
) -> list[Tensor]:
    """Products, masks, drift, dz and dtheta of the specification; ``dtype`` replaces all dtypes."""
    weights = [w.detach().to(dtype or w.dtype).requires_grad_() for w in weights]
    z = z.to(dtype or z.dtype).clone().requires_grad_()
    shaped = [part.view(w.shape) for part, w in zip(z.split(SIZES), weights, strict=True)]
    qs = [None] * len(SIZES) if thresholds is None else thresholds.to(z.dtype).unbind()
    products, masks = reference.mask_weights(weights, shaped, qs)
    products = [p if m else None for p, m in zip(products, MASKED, strict=True)]
    drift = z.new_zeros(())
    if previous is not None:
        old = [o.view(w.shape) for o, w in zip(previous.split(SIZES), weights, strict=True)]
        old = [o.to(w.dtype) for o, w in zip(old, weights, strict=True)]
        drift = reference.l1_drift(weights, old, masks if masked_drift else None)
    loss = 0 * z.nan_to_num(0, 0, 0).sum() + sum(0 * w.sum() for w in weights)
    if drift_grad is not None and previous is not None:
        loss = loss + drift_grad.to(drift.dtype) * drift
    for product, grad in zip(products, grads, strict=True):
        if product is not None and grad is not None:
            loss = loss + (product * grad.to(product.dtype)).sum()
    found = torch.autograd.grad(loss, [z, *weights])
    flat = torch.cat([mask.flatten() for mask in masks])
    return [t.detach() for t in (*(p for p in products if p is not None), flat, drift, *found)]


def run(
    weights: Sequence[Tensor],
    z: Tensor,
    thresholds: Tensor | None,
    grads: Sequence[Tensor | None],
    previous: Tensor | None,
    masked_drift: bool,
    drift_grad: Tensor | None,
) -> list[Tensor]:
    products, masks, drift = mask_weights.forward(
        weights, z, thresholds, MASKED, previous, masked_drift
    )
    assert [p is not None for p in products] == MASKED
    for product, weight, mask in zip(products, weights, masks.split(SIZES), strict=True):
        if product is not None:
            rounded = (weight.float() * mask.view(weight.shape)).to(weight.dtype)
            assert torch.equal(product, rounded)
    dz, dweights = mask_weights.backward(
        weights, z, thresholds, grads, previous, masked_drift, drift_grad
    )
    return [*(p for p in products if p is not None), masks, drift, dz, *dweights]


def check(
    weights: Sequence[Tensor],
    z: Tensor,
    thresholds: Tensor | None,
    grads: Sequence[Tensor | None],
    previous: Tensor | None,
    masked_drift: bool,
    drift_grad: Tensor | None,
) -> None:
    arguments = (weights, z, thresholds, grads, previous, masked_drift, drift_grad)
    exact = expected(*arguments, dtype=torch.float64)
    flat = torch.cat([w.double().flatten() for w in weights])
    given = [torch.zeros_like(w) if g is None else g for w, g in zip(weights, grads, strict=True)]
    upstream = torch.cat([g.double().flatten().abs() for g in given])
    along = 0.0 if previous is None or drift_grad is None else float(drift_grad)
    away = 0.0 if previous is None else (flat - previous.double()).abs()
    # A slope is off by a part of 1, and so are two terms with opposite signs.
    of_z = 2 * (upstream * flat.abs() + along * away)
    of_weights = (upstream + along).split(SIZES)
    count = len(exact) - len(weights) - 3
    sizes = [*(t.abs() for t in exact[: count + 2]), of_z]
    sizes += [part.view(w.shape) for part, w in zip(of_weights, weights, strict=True)]
    # All are of two terms at most but the drift, of all entries.
    terms = [2] * (count + 1) + [len(z)] + [2] * (1 + len(weights))
    dtypes = [w.dtype for w, is_masked in zip(weights, MASKED, strict=True) if is_masked]
    dtypes += [torch.float32] * 3 + [w.dtype for w in weights]
    for found, true, size, number, dtype in zip(
        run(*arguments), exact, sizes, terms, dtypes, strict=True
    ):
        assert true.isfinite().all()
        assert_as_exact(found, true, rounding_bound(size, number), dtype)


@pytest.mark.parametrize("tiny", [1e-45, 1e-40, 1.1e-38, 1.3e-38, 1e-30, 9.9e-5, 1.01e-4])
def test_a_mask_of_a_tiny_logit_is_the_logit(tiny: float, device: torch.device) -> None:
    z = torch.tensor([tiny, -tiny], device=device)
    w = torch.ones_like(z)
    assert torch.equal(mask_weights.forward([w], z, None, [True])[1], z.abs())
    assert mask_weights.backward([w], z, None, [w])[0].tolist() == [1, -1]


@pytest.mark.gpu
def test_masks_have_the_bits_of_torchs_tanh(device: torch.device) -> None:
    z = torch.arange(0, 0x7F800000, 101, dtype=torch.int32, device=device).view(torch.float32)
    assert torch.equal(mask_weights.forward([z], z, None, [False])[1], z.tanh())


@pytest.mark.parametrize(
    ("dtype", "has_thresholds", "drift"),
    [
        pytest.param(torch.float32, True, "masked", id="float32-masked-drift"),
        pytest.param(torch.float32, True, "plain", id="float32-drift"),
        pytest.param(torch.float32, True, None, id="float32"),
        pytest.param(torch.float32, False, None, id="float32-no-thresholds"),
        pytest.param(torch.float32, False, "masked", id="float32-no-thresholds-masked-drift"),
        pytest.param(torch.float16, True, "masked", id="float16-masked-drift"),
        pytest.param(torch.bfloat16, True, "masked", id="bfloat16-masked-drift"),
        pytest.param(torch.bfloat16, False, "plain", id="bfloat16-no-thresholds-drift"),
    ],
)
def test_values_and_gradients(
    dtype: torch.dtype, has_thresholds: bool, drift: str | None, device: torch.device
) -> None:
    weights, z, thresholds = inputs(dtype, device)
    grads = [torch.randn_like(w) if m else None for w, m in zip(weights, MASKED, strict=True)]
    previous = torch.cat([w.flatten() for w in weights]) + 0.1 * z.flip(0).clamp(-3, 3).to(dtype)
    previous[5] = weights[1].flatten()[4]
    check(
        *(weights, z, thresholds if has_thresholds else None, grads),
        *(None if drift is None else previous, drift == "masked"),
        None if drift is None else torch.tensor(0.7, device=device),
    )


def test_gradients_that_are_missing_count_as_zero(device: torch.device) -> None:
    weights, z, thresholds = inputs(torch.float32, device)
    previous = torch.cat([w.flatten() for w in weights]) + 0.1
    grads = [None, torch.randn_like(weights[1]), None, None, None]
    check(weights, z, thresholds, grads, previous, True, None)
    check(weights, z, thresholds, [None] * 5, previous, True, torch.tensor(0.7, device=device))
    dz, dweights = mask_weights.backward(weights, z, thresholds, [None] * 5)
    assert not dz.any()
    assert not any(grad.any() for grad in dweights)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda t: t.sum().expand(t.shape), id="expanded"),
        pytest.param(lambda t: t.mT.contiguous().mT if t.dim() > 1 else t, id="transposed"),
        pytest.param(
            lambda t: torch.cat((t.flatten()[:1], t.flatten()))[1:].view(t.shape), id="unaligned"
        ),
        pytest.param(lambda t: t.repeat_interleave(2, -1)[..., ::2], id="strided"),
    ],
)
def test_layouts(change: Any, device: torch.device) -> None:
    weights, z, thresholds = inputs(torch.float32, device)
    grads = [
        change(torch.randn_like(w)) if m else None for w, m in zip(weights, MASKED, strict=True)
    ]
    previous = change(torch.randn_like(z))
    weights = [change(w) for w in weights]
    strided = torch.empty(2 * len(z), device=device)[::2].copy_(z)
    check(weights, strided, thresholds, grads, previous, True, torch.tensor(0.7, device=device))


def test_float32_previous_weights_of_bfloat16(device: torch.device) -> None:
    weights, z, thresholds = inputs(torch.bfloat16, device)
    previous = torch.cat([w.flatten() for w in weights]).float() + 0.25 * (z > 0)
    _, _, drift = mask_weights.forward(weights, z, thresholds, MASKED, previous, False)
    torch.testing.assert_close(drift, 0.25 * (z > 0).sum(), rtol=1e-6, atol=0)


def test_dtypes_may_differ(device: torch.device) -> None:
    weights, z, thresholds = inputs(torch.float32, device)
    weights = [w.to(d) for w, d in zip(weights, [torch.half, torch.float] * 3, strict=False)]
    grads = [torch.randn_like(w) if m else None for w, m in zip(weights, MASKED, strict=True)]
    previous = torch.cat([w.flatten().float() for w in weights]) + 0.5
    check(weights, z, thresholds, grads, previous, True, torch.tensor(0.7, device=device))


# More than one launch takes.
@pytest.mark.parametrize("count", [1, 66])
def test_numbers_of_tensors(count: int, device: torch.device) -> None:
    weights = [torch.randn(1 + 3 * i % 7, device=device) for i in range(count)]
    sizes = [len(w) for w in weights]
    z = torch.randn(sum(sizes), device=device)
    previous = torch.zeros_like(z)
    products, masks, drift = mask_weights.forward(weights, z, None, [True] * count, previous)
    flat = torch.cat(weights)
    torch.testing.assert_close(masks, z.tanh().abs(), rtol=3e-7, atol=0)
    assert torch.equal(torch.cat(products), flat * masks)
    torch.testing.assert_close(drift, (flat.double().abs() * masks).sum().float())
    dz, dweights = mask_weights.backward(weights, z, None, weights)
    assert torch.equal(torch.cat(dweights), flat * masks)
    torch.testing.assert_close(dz, flat**2 * z.sign() * (1 - masks**2))


def test_nan_stays_nan(device: torch.device) -> None:
    z = torch.linspace(-1, 1, 11, device=device)
    z[3] = torch.nan
    weight = torch.ones_like(z)
    for threshold in (-torch.inf, 0.9, torch.nan):
        thresholds = torch.tensor([threshold], device=device)
        (product,), masks, _ = mask_weights.forward([weight], z, thresholds, [True])
        dz, _ = mask_weights.backward([weight], z, thresholds, [weight])
        for tensor in (product, masks, dz):
            assert torch.equal(tensor.isnan(), z.isnan())


def test_a_mask_at_the_threshold_is_kept(device: torch.device) -> None:
    z = torch.linspace(-2, 2, 100, device=device)
    weight = torch.ones_like(z)
    before = mask_weights.forward([weight], z, None, [True])[1]
    mask = mask_weights.forward([weight], z, before[30:31].clone(), [True])[1]
    assert torch.equal(mask, torch.where(before >= before[30], before, 0))


def test_tanh_is_within_two_units_in_the_last_place(device: torch.device) -> None:
    ends = torch.tensor([0.0, torch.inf, -torch.inf, 9.0, 9.02, 0.625])
    z = torch.cat((torch.linspace(-12, 12, 40_000), torch.logspace(-37, 1, 20_000), ends))
    with tuning.forced("mask_weights_forward", {"BLOCK": 16384, "num_warps": 8}):
        mask = mask_weights.forward([z.to(device)], z.to(device), None, [True])[1].cpu()
    exact = z.double().tanh().abs()
    nearest = exact.float()
    ulp = torch.from_numpy(np.spacing(nearest.numpy()))
    assert mask.max() == 1
    # What CUDA states of its own: the distance from the nearest number.
    assert ((mask - nearest).abs() / ulp).max() <= 2


def test_the_drift_does_not_depend_on_other_tensors(device: torch.device) -> None:
    weights, z, thresholds = inputs(torch.float32, device)
    weights = [w if i == 2 else torch.zeros_like(w) for i, w in enumerate(weights)]
    alone = z[sum(SIZES[:2]) : sum(SIZES[:3])]
    one = mask_weights.forward(
        [weights[2]], alone, thresholds[2:3], [True], torch.zeros_like(alone)
    )
    every = mask_weights.forward(weights, z, thresholds, MASKED, torch.zeros_like(z))
    torch.testing.assert_close(every[2], one[2], rtol=1e-6, atol=0)


def test_entries_beyond_32_bits(tmp_path: Path, device: torch.device) -> None:
    first, count = 2**31, 700

    def large(name: str) -> Tensor:
        if device.type == "cuda":
            return torch.empty(first + count, device=device)
        # A sparse file, of which only the end is ever touched.
        file = np.memmap(tmp_path / name, np.float32, "w+", shape=(first + count,))
        return torch.from_numpy(file)

    huge = {name: large(name) for name in ("weight", "z", "mask", "product", "dweight", "dz")}
    end = {name: tensor[first:] for name, tensor in huge.items()}
    end["weight"].normal_()
    end["z"].normal_()
    tables = ([0], [first], [0, first + count], [1])
    dtypes = (torch.int32, torch.int64, torch.int64, torch.int32)
    pairs = zip(tables, dtypes, strict=True)
    table = Blocks(*(torch.tensor(t, dtype=d, device=device) for t, d in pairs))
    flags = {"HAS_THRESHOLDS": False, "MASKED_DRIFT": True, "BLOCK": 1024}
    like, drift = end["weight"], torch.empty(1, device=device)
    drift_grad = torch.ones((), device=device)
    finite = torch.empty(1, dtype=torch.int32, device=device)
    mask_weights._mask_weights_forward_kernel[(1,)](
        *((huge["weight"],), like, huge["z"], None, huge["weight"]),
        *((huge["product"],), huge["mask"], drift, *table[:3]),
        HAS_DRIFT=True,
        **flags,
    )
    torch.testing.assert_close(end["mask"], end["z"].tanh().abs(), rtol=3e-7, atol=0)
    assert torch.equal(end["product"], end["weight"] * end["mask"])
    assert drift == 0
    mask_weights._mask_weights_backward_kernel[(1,)](
        *((huge["weight"],), like, huge["z"], None, huge["weight"]),
        *((huge["weight"],), drift_grad, (huge["dweight"],), huge["dz"], finite, *table[:3]),
        HAS_DRIFT=True,
        **flags,
    )
    slope = end["z"].sign() * (1 - end["mask"] ** 2)
    torch.testing.assert_close(end["dz"], end["weight"] ** 2 * slope)
    assert torch.equal(end["dweight"], end["weight"] * end["mask"])


@pytest.mark.gpu
def test_bits_do_not_change_between_runs(device: torch.device) -> None:
    weights, z, thresholds = inputs(torch.float32, device)
    arguments = (weights, z, thresholds, [*weights[:4], None], z + 1, True, z[0].abs())
    for first, second in zip(run(*arguments), run(*arguments), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blocks_that_lie_for_wide_loads_have_the_bits_of_others(
    dtype: torch.dtype, device: torch.device
) -> None:
    """Whole blocks at multiples of 16 bytes; and the same numbers one entry further."""
    shapes, results = [(64, 32), (40,), (1024,), (7,)], []
    sizes = [int(np.prod(shape)) for shape in shapes]
    count, generator = sum(sizes), torch.Generator().manual_seed(3)
    numbers = torch.randn(4, count, generator=generator).to(device)
    thresholds = torch.full((4,), 0.2, device=device)
    for shift in (0, 1):
        memory = torch.empty(4, count + 8, device=device)[:, shift : shift + count]
        z, previous, weight, grad = memory.copy_(numbers)
        parts = [x.to(dtype).split(sizes) for x in (weight, grad)]
        weights, grads = (
            [p.view(shape) for p, shape in zip(each, shapes, strict=True)] for each in parts
        )
        if dtype == torch.float32:
            assert (z.data_ptr() % 16 == 0) is not bool(shift)
        products, masks, drift = mask_weights.forward(
            weights, z, thresholds, [True] * 4, previous, True
        )
        found = mask_weights.backward(
            *(weights, z, thresholds, grads, previous, True, torch.ones((), device=device))
        )
        results.append([*products, masks, found[0], *found[1]])
        exact = (weight.to(dtype).float() - previous).abs().double() @ masks.double()
        torch.testing.assert_close(drift.double(), exact, rtol=1e-5, atol=0)
    for first, second in zip(*results, strict=True):
        assert torch.equal(first, second)


@triton.jit
def _is_wide_kernel(out_ptr, start, count, addresses, BLOCK: tl.constexpr):
    wide = mask_weights._is_wide(start, count, addresses, BLOCK)
    tl.store(out_ptr, wide.to(tl.int32))


@pytest.mark.parametrize(
    ("start", "count", "addresses", "wide"),
    [(0, 64, 4096, 1), (72, 64, 16, 1), (4, 64, 0, 0), (64, 63, 0, 0), (64, 64, 4104, 0)],
)
def test_wide_loads_are_of_whole_blocks_at_multiples_of_16_bytes(
    start: int, count: int, addresses: int, wide: int, device: torch.device
) -> None:
    out = torch.zeros((), dtype=torch.int32, device=device)
    _is_wide_kernel[(1,)](out, start, count, addresses, BLOCK=64)
    assert out == wide
