"""Bounds of linear and convolution layers hold every network of the box, in float32 to the bit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hypermask_fast.layers.intervals import (
    Box,
    Interval,
    IntervalWeights,
    exchanged,
    intersection,
    interval_product,
    outwards,
    point_product,
    rounding_margin,
)

SAMPLES = 10_000


def _box(shape: tuple[int, ...], spread: float, *, low: float = -1.0) -> Interval:
    mid = low + (1 - low) * torch.rand(shape)
    radius = spread * torch.rand(shape)
    lower = mid - radius
    if low >= 0:
        lower = lower.clamp(min=0)
    return Interval(lower, mid, mid + radius)


def _samples(box: Interval | None, count: int, *, corners: bool) -> Tensor | None:
    """Points of a box, (count, ...)."""
    if box is None:
        return None
    at = torch.rand(count, *box.low.shape)
    at = at.round() if corners else at
    return torch.lerp(box.low, box.up, at).clamp(box.low, box.up)


def _conv(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.conv2d(x, weight, bias, stride=2, padding=1)


LAYERS = [
    pytest.param(F.linear, (2, 7), (4, 7), id="linear"),
    pytest.param(_conv, (1, 2, 5, 5), (3, 2, 3, 3), id="conv2d"),
]


@pytest.mark.parametrize(("product", "input_shape", "weight_shape"), LAYERS)
@pytest.mark.parametrize("low", [0.0, -1.0], ids=["non-negative", "any-sign"])
@pytest.mark.parametrize("has_bias", [True, False], ids=["bias", "no-bias"])
def test_bounds_hold_sampled_networks(
    product: Callable[..., Tensor],
    input_shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    low: float,
    has_bias: bool,
) -> None:
    torch.manual_seed(0)
    x, weight = _box(input_shape, 0.3, low=low), _box(weight_shape, 0.5)
    bias = _box(weight_shape[:1], 0.2) if has_bias else None
    bounds = interval_product(x, weight, bias, product)
    held = outwards(bounds, rounding_margin(x, weight, bias, product))
    seen_low, seen_up = bounds.up, bounds.low
    for corners in (True, False):
        points = [_samples(box, SAMPLES // 2, corners=corners) for box in (x, weight, bias)]
        axes = (0, 0, 0 if has_bias else None)
        y = torch.func.vmap(product, axes)(*points)
        assert (y >= held.low).all()
        assert (y <= held.up).all()
        seen_low, seen_up = torch.minimum(seen_low, y.amin(0)), torch.maximum(seen_up, y.amax(0))
    # They are no wider than the box asks for: samples fill a good part of them.
    if low >= 0:
        share = (seen_up - seen_low) / (bounds.up - bounds.low)
        assert share.mean() > 0.4
    # Rounding is a small part of the width.
    assert (held.up - bounds.up < 1e-4 * (bounds.up - bounds.low)).all()


@pytest.mark.parametrize("low", [0.0, -1.0])
def test_bounds_are_reached(low: float) -> None:
    """Of inputs that are points, or not negative, a corner of the box has the bound itself."""
    torch.manual_seed(1)
    point = low + (1 - low) * torch.rand(1, 6, dtype=torch.float64)
    x = Interval(point, point, point)
    if low >= 0:
        radius = torch.rand(1, 6, dtype=torch.float64)
        x = Interval(point, point, point + radius)
    weight = Interval(*(w.double() for w in _box((5, 6), 0.7)))
    bounds = interval_product(x, weight, None, F.linear)
    ends = [a * w for a in (x.low, x.up) for w in (weight.low, weight.up)]
    exact = torch.stack(ends)
    torch.testing.assert_close(bounds.low[0], exact.amin(0).sum(-1), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(bounds.up[0], exact.amax(0).sum(-1), rtol=1e-12, atol=1e-12)


def test_a_box_that_is_a_point_is_an_ordinary_layer() -> None:
    x = torch.randn(3, 6, dtype=torch.float64)
    weight, bias = torch.randn(4, 6, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    boxes = [Box(each, torch.zeros_like(each)) for each in (weight, bias)]
    weights = IntervalWeights(*boxes)
    for part in weights.applied(x.repeat(3, 1), F.linear).chunk(3):
        torch.testing.assert_close(part, F.linear(x, weight, bias), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("product", "input_shape", "weight_shape"), LAYERS)
@pytest.mark.parametrize("has_bias", [True, False], ids=["bias", "no-bias"])
def test_points_need_two_products_and_have_the_same_bounds_and_gradients(
    product: Callable[..., Tensor],
    input_shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    has_bias: bool,
) -> None:
    torch.manual_seed(2)
    x = torch.randn(input_shape, dtype=torch.float64)
    shapes = [weight_shape, weight_shape[:1]][: 1 + has_bias]
    leaves = [
        [torch.randn(s).double().requires_grad_(), torch.rand(s).double().requires_grad_()]
        for s in shapes
    ]
    boxes = [Box(*pair) for pair in leaves]
    bias = boxes[1] if has_bias else None
    calls: list[Tensor] = []

    def counted(*args: Tensor) -> Tensor:
        calls.append(args[0])
        return product(*args)

    repeated = x.repeat(3, *[1] * (x.dim() - 1))
    found = IntervalWeights(boxes[0], bias).applied(repeated, counted)
    assert len(calls) == 2
    ends = None if bias is None else bias.bounds()
    expected = torch.cat(interval_product(Interval(x, x, x), boxes[0].bounds(), ends, product))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(torch.cat(point_product(x, boxes[0], bias, product)), found)
    parameters, given = [leaf for pair in leaves for leaf in pair], torch.randn_like(found)
    grads = [torch.autograd.grad(y, parameters, given) for y in (found, expected)]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_inputs_that_want_gradients_are_no_points() -> None:
    """Both ends have gradients of their own, also where they are equal."""
    torch.manual_seed(3)
    box = Box(torch.randn(4, 6).double(), torch.rand(4, 6).double())
    x = torch.rand(2, 6).double()
    leaf = x.repeat(3, 1).requires_grad_()
    given = torch.randn(6, 4).double()
    (found,) = torch.autograd.grad(IntervalWeights(box, None).applied(leaf, F.linear), leaf, given)
    ends = Interval(*(x.clone().requires_grad_() for _ in range(3)))
    y = torch.cat(interval_product(ends, box.bounds(), None, F.linear))
    expected = torch.cat(torch.autograd.grad(y, ends, given))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_the_exchanges_are_the_published_two_and_no_sort() -> None:
    # The third is the smallest: mid and up come out right, low does not.
    found = exchanged(*torch.tensor([[2.0], [3.0], [1.0]]))
    assert [float(v) for v in found] == [2.0, 1.0, 3.0]


def test_an_empty_intersection_is_the_middle() -> None:
    low, up = torch.tensor([[0.0, 0.0], [3.0, 1.0]]), torch.tensor([[1.0, 2.0], [4.0, 3.0]])
    found = intersection(low, up)
    assert found[0].tolist() == [2.0, 1.0]
    assert found[1].tolist() == [2.0, 2.0]
