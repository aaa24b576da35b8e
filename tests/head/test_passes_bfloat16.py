"""Moments and kept logits in bfloat16 are rounded once, to even."""

from __future__ import annotations

import pytest
import torch

from hypermask_fast import reference
from hypermask_fast.head import passes
from hypermask_fast.head.types import Head, Moments
from tests.support.head_cases import (
    adam_rows,
    copied,
    head_of,
    make_head,
    step,
    tensors,
    torch_step,
)
from tests.support.pass_cases import BOTH, SIZES


@BOTH
def test_bfloat16_moments_are_rounded_once(backend: str, dtype: torch.dtype) -> None:
    head, hidden = make_head(203, 9, dtype), torch.randn(2, 9, dtype=dtype)
    dz, targets = torch.randn(203, dtype=dtype), torch.randn(1, 203, dtype=dtype)
    small = head_of((*tensors(head)[:2], *(m.to(torch.bfloat16) for m in tensors(head)[2:])))
    exact = copied(small, torch.float64)
    torch_step(exact, dz.double(), hidden.double(), targets.double(), 0.5)
    step(small, dz, hidden, targets, coefficient=0.5)
    # A is updated with what the moments were before they were rounded.
    tolerance = 1e3 * torch.finfo(dtype).eps
    torch.testing.assert_close(small.weight.double(), exact.weight, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(small.bias.double(), exact.bias, rtol=tolerance, atol=tolerance)
    for moment, wanted in zip(tensors(small)[2:], tensors(exact)[2:], strict=True):
        # Half a unit in the last of 8 bits, beside the float32 rounding of what is rounded.
        allowed = torch.exp2(wanted.frexp().exponent - 9.0) + 1e-5
        assert moment.dtype == torch.bfloat16
        assert ((moment.double() - wanted).abs() <= allowed).all()


def test_bfloat16_ties_go_to_even_and_nan_stays(backend: str) -> None:
    unit = 2.0**-7
    # Rounded like a number, the largest NaN would become -0.
    nan = torch.tensor(0x7FFFFFFF, dtype=torch.int32).view(torch.float32)
    gradients = torch.tensor([[1 + unit, 1 + 2 * unit, 0.0]])
    gradients[0, 2] = nan
    start = torch.tensor([[1.0], [1 + unit], [1.0]]).bfloat16()
    exp_avg, exp_avg_sq = start.clone(), start.clone()
    head = Head(torch.zeros(3, 1), moments=Moments(exp_avg, exp_avg_sq))
    adam_rows(head, gradients, torch.ones(1, 1), beta1=0.5)
    # The means are 1 + unit / 2 and 1 + 3 unit / 2.
    assert exp_avg[:2, 0].tolist() == [1.0, 1 + 2 * unit]
    assert exp_avg[2].isnan()
    assert exp_avg_sq[2].isnan()


@BOTH
@pytest.mark.parametrize(("rows", "width", "count"), SIZES)
def test_bfloat16_targets(
    backend: str, rows: int, width: int, count: int, dtype: torch.dtype
) -> None:
    """As targets of A's dtype, those that a logit rounds to moved onto it."""
    start, hidden = make_head(rows, width, dtype), torch.randn(count, width, dtype=dtype)
    dz = torch.randn(rows, dtype=dtype)
    z = passes.logits(start, hidden)[1:]
    near = torch.rand(z.shape) < 0.5
    targets = torch.where(near, z, z + 0.1 * torch.randn_like(z)).bfloat16()
    small, plain = copied(start), copied(start)
    results = [step(small, dz, hidden, targets, coefficient=0.3)]
    moved = torch.where(z.bfloat16() == targets, z, targets.to(dtype))
    results.append(step(plain, dz, hidden, moved, coefficient=0.3))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(tensors(small), tensors(plain), strict=True))
    wanted = reference.output_residuals(z, targets).double().square().sum()
    assert results[0][1].item() == pytest.approx(wanted.item(), rel=1e-12)


@BOTH
@pytest.mark.parametrize("offset", [0, 1, -1])
def test_bfloat16_targets_at_ties_and_ends(backend: str, dtype: torch.dtype, offset: int) -> None:
    """The logits are these numbers; Adam without a mean shows the residual of each."""
    unit, tiny = 2.0**-7, 2.0**-149
    numbers = [1 + unit / 2, 1 + 3 * unit / 2, 1 + unit / 2 + 2.0**-20, -3.3, 0.0, -0.0, tiny]
    numbers += [-tiny, 3.3e38, torch.inf, -torch.inf, torch.nan, 1 / 3, 1 + unit / 2 + 2.0**-40]
    values = torch.tensor(numbers, dtype=dtype)
    # Neighbours in their order.
    targets = (values.bfloat16().view(torch.int16) + offset).view(torch.bfloat16)[None]
    exact = torch.where(values.bfloat16() == targets, 0, values - targets.to(dtype))[0]
    assert torch.equal(
        reference.output_residuals(values, targets)[0].nan_to_num(), exact.nan_to_num()
    )
    weight, moments = values[:, None].clone(), [torch.zeros(14, 1, dtype=dtype) for _ in range(2)]
    zeros = [torch.zeros(14, dtype=dtype) for _ in range(4)]
    head = head_of((weight, zeros[0], *moments, *zeros[1:3]))
    ones = torch.ones(2, 1, dtype=dtype)
    step(head, zeros[3], ones, targets, coefficient=1.0, beta1=0.0, step=1)
    if backend == "native":  # to it, subnormal numbers are 0
        exact[exact.abs() < torch.finfo(torch.bfloat16).tiny] = 0
    found, finite = moments[0][:, 0], exact.isfinite()
    assert torch.equal(found[finite], exact[finite])
    assert not found[~finite].isfinite().any()
