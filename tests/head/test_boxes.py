"""Passes over a head that is given boxes, against plain float64 arithmetic and autograd."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hypermask_fast.head import boxes
from hypermask_fast.head.adam import AdamOptions
from hypermask_fast.head.types import Head, HeadStep, KeptBoxes, Moments
from hypermask_fast.native import library


@pytest.fixture(params=["native", "pytorch"], autouse=True)
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "pytorch":
        monkeypatch.setattr(library, "load", lambda: None)
    elif library.load() is None:
        pytest.skip(f"the native passes are not available: {library.status()}")
    return str(request.param)


def _zeros(like: Tensor, dtype: torch.dtype | None = None) -> Moments:
    return Moments(torch.zeros_like(like, dtype=dtype), torch.zeros_like(like, dtype=dtype))


def _case(
    dtype: torch.dtype, rows: int = 77, width: int = 13, count: int = 3
) -> tuple[Head, Tensor]:
    torch.manual_seed(0)
    weight, bias = torch.randn(rows, width, dtype=dtype), torch.randn(rows, dtype=dtype)
    hidden = torch.randn(2 * count, width, dtype=dtype)
    hidden[count:].abs_()
    return Head(weight, bias), hidden


@pytest.mark.parametrize("width", [1, 3, 8, 13, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_centers_and_radii(width: int, dtype: torch.dtype) -> None:
    head, hidden = _case(dtype, width=width)
    assert head.bias is not None
    a, points, spreads = head.weight.double(), *hidden.double().chunk(2)
    expected = torch.cat((points @ a.t() + head.bias.double(), spreads @ a.abs().t()), 1)
    # Sums of n terms err by less than n eps of the sum of their absolute values.
    sizes = torch.cat((points.abs() @ a.abs().t() + head.bias.double().abs(), expected[:, 77:]), 1)
    error = (boxes.logits(head, hidden).double() - expected).abs()
    assert (error <= (width + 2) * torch.finfo(dtype).eps * sizes).all()


@pytest.mark.parametrize("radii", [True, False], ids=["radii", "centers"])
@pytest.mark.parametrize("kept_dtype", [None, torch.bfloat16], ids=["full", "bfloat16"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [1, 2, 6])
def test_nothing_changed_leaves_no_residual(
    radii: bool, kept_dtype: torch.dtype | None, dtype: torch.dtype, count: int
) -> None:
    """And then a step without a gradient moves nothing."""
    head, hidden = _case(dtype, count=count)
    assert head.bias is not None
    made = boxes.logits(head, hidden)[1:]
    made = (made if radii else made[:, :77]).to(kept_dtype or dtype).contiguous()
    kept = KeptBoxes(made if count > 1 else None, radii)
    before = head.weight.clone(), head.bias.clone()
    whole = head._replace(moments=_zeros(head.weight), bias_moments=_zeros(head.bias))
    step = HeadStep(whole, torch.zeros(2, 77, dtype=dtype), hidden, kept, 0.5, _adam())
    grads = boxes.step_rows(step)
    assert grads.squares == 0
    assert not grads.hidden.any()
    assert torch.equal(head.weight, before[0])
    assert torch.equal(head.bias, before[1])


def _adam() -> AdamOptions:
    return AdamOptions(0.01, 0.9, 0.999, 1e-8, 0.0, False, 1)


@pytest.mark.parametrize("radii", [True, False], ids=["radii", "centers"])
@pytest.mark.parametrize("count", [1, 2, 6])
@pytest.mark.parametrize("width", [3, 8, 13])
@pytest.mark.parametrize("own_bias", [True, False], ids=["bias", "bias-grad"])
def test_a_step_is_autograds(radii: bool, count: int, width: int, own_bias: bool) -> None:
    head, hidden = _case(torch.float64, width=width, count=count)
    assert head.bias is not None
    dz = torch.randn(2, 77, dtype=torch.float64)
    kept = torch.randn(count - 1, 154 if radii else 77, dtype=torch.float64)
    leaves = [t.clone().requires_grad_() for t in (head.weight, head.bias, hidden)]
    weight, bias, hid = leaves
    points, spreads = hid.chunk(2)
    centers, sizes = points @ weight.t() + bias, spreads @ weight.abs().t()
    squares = (centers[1:] - kept[:, :77]).square().sum()
    if radii:
        squares = squares + 2 / 3 * (sizes[1:] - kept[:, 77:]).square().sum()
    ((centers[0] * dz[0]).sum() + (sizes[0] * dz[1]).sum() + 0.15 * squares).backward()
    torch.optim.Adam(leaves[:2], lr=0.01).step()
    whole = head._replace(moments=_zeros(head.weight), bias_moments=_zeros(head.bias))
    of_bias = None if own_bias else torch.empty_like(head.bias)
    stored = KeptBoxes(kept if count > 1 else None, radii)
    step = HeadStep(whole, dz, hidden, stored, 0.3, _adam(), of_bias)
    grads = boxes.step_rows(step)
    assert grads.squares == pytest.approx(squares.item(), rel=1e-12)
    torch.testing.assert_close(grads.hidden, hid.grad, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(head.weight, weight.detach(), rtol=1e-9, atol=1e-9)
    if of_bias is None:
        torch.testing.assert_close(head.bias, bias.detach(), rtol=1e-9, atol=1e-9)
    else:
        torch.testing.assert_close(of_bias, bias.grad, rtol=1e-10, atol=1e-10)


def test_a_boxs_bits_do_not_depend_on_the_others(engine: str) -> None:
    """Nor on the rows that share a tile: 77 rows are two whole tiles and a part."""
    if engine == "pytorch":
        pytest.skip("a step forms all its boxes together there")
    for dtype in (torch.float32, torch.float64):
        head, hidden = _case(dtype, width=21, count=7)
        points, spreads = hidden.chunk(2)
        whole = boxes.logits(head, hidden)
        for first, last in ((0, 1), (0, 2), (1, 4), (2, 7), (6, 7)):
            part = torch.cat((points[first:last], spreads[first:last]))
            assert torch.equal(boxes.logits(head, part), whole[first:last])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_weight_that_is_zero_has_no_gradient_of_radii(dtype: torch.dtype) -> None:
    head, hidden = _case(dtype, width=5, count=2)
    with torch.no_grad():
        head.weight[3], head.weight[4] = 0.0, -0.0
    hidden[:2] = 0.0
    before = head.weight.clone()
    whole = head._replace(moments=_zeros(head.weight), bias_moments=_zeros(head.bias))
    kept = KeptBoxes(torch.ones(1, 154, dtype=dtype), True)
    boxes.step_rows(HeadStep(whole, torch.ones(2, 77, dtype=dtype), hidden, kept, 0.3, _adam()))
    moved = (head.weight != before).all(1)
    assert not (head.weight != before)[3:5].any()
    assert moved[:3].all()
    assert moved[5:].all()
