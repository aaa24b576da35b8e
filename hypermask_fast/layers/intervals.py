"""Interval arithmetic of linear and convolution layers whose inputs and weights are boxes."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from hypermask_fast.modes import has_values

Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""A layer's product of inputs and weight, plus a bias."""


class Interval(NamedTuple):
    """Bounds of a tensor and a value between them, all of its shape: low <= mid <= up."""

    low: Tensor
    mid: Tensor
    up: Tensor


class Box(NamedTuple):
    """A box by its center and its radius, which is not negative; of one shape."""

    center: Tensor
    radius: Tensor

    def bounds(self) -> Interval:
        """Return the box's ends, and its center between them."""
        return Interval(self.center - self.radius, self.center, self.center + self.radius)


class IntervalWeights(NamedTuple):
    """What a layer runs with where its weights are a box; the bias is None where it has none.

    Its inputs and outputs are then three batches after each other: low, mid and up. What treats
    rows alone and never falls as its input rises, such as a ReLU, pooling or a sum, may run
    between such layers.
    """

    weight: Box
    bias: Box | None

    def applied(self, x: Tensor, product: Product) -> Tensor:
        """Return the outputs (3 * batch, ...) for inputs (3 * batch, ...)."""
        box = Interval(*x.chunk(3))
        if _is_point(box):
            return torch.cat(point_product(box.mid, self.weight, self.bias, product))
        bias = None if self.bias is None else self.bias.bounds()
        return torch.cat(interval_product(box, self.weight.bounds(), bias, product))


def _is_point(x: Interval) -> bool:
    # Gradients would have to reach both ends.
    return not x.low.requires_grad and has_values(x.low) and torch.equal(x.low, x.up)


def _may_be_negative(low: Tensor) -> bool:
    # Elsewhere than on a CPU a look would wait for the device.
    return not has_values(low) or bool((low < 0).any())


def interval_product(
    x: Interval, weight: Interval, bias: Interval | None, product: Product
) -> Interval:
    """Return bounds of a linear map's outputs over all inputs and weights of two boxes.

    For inputs that are not negative these are the true bounds, and for points of any sign too.
    Of others the parts above and below 0 are bounded apart, which is sound and not the tightest.
    Rounding may move a bound inwards by a few units in the last place of the sum of absolute
    products: :func:`rounding_margin`.

    Args:
        x: Inputs.
        weight, bias: Of the layer; no bias where it has none.
        product: The map, such as ``torch.nn.functional.linear``.
    """
    biases = (None, None, None) if bias is None else bias
    above, below = [w.clamp(min=0) for w in weight], [w.clamp(max=0) for w in weight]
    low_in, up_in = x.low, x.up
    negative = _may_be_negative(x.low)
    if negative:
        low_in, up_in = low_in.clamp(min=0), up_in.clamp(min=0)
    low = product(low_in, above[0], biases[0]) + product(up_in, below[0], None)
    up = product(up_in, above[2], biases[2]) + product(low_in, below[2], None)
    if negative:
        least, most = (-x.up).clamp(min=0), (-x.low).clamp(min=0)
        low = low - product(most, above[2], None) - product(least, below[2], None)
        up = up - product(least, above[0], None) - product(most, below[0], None)
    return Interval(low, product(x.mid, weight.mid, biases[1]), up)


def point_product(x: Tensor, weight: Box, bias: Box | None, product: Product) -> Interval:
    """Return :func:`interval_product` of inputs that are points, by two products in place of five.

    Args:
        x: Inputs.
        weight, bias, product: As there.
    """
    center = product(x, weight.center, None if bias is None else bias.center)
    radius = product(x.abs(), weight.radius, None if bias is None else bias.radius)
    return Box(center, radius).bounds()


def rounding_margin(
    x: Interval, weight: Interval, bias: Interval | None, product: Product
) -> Tensor:
    """Return by how much rounding can move a bound of :func:`interval_product`, or an output.

    Each is a sum of at most n products in any order, off by less than (n + 4) eps of the sum of
    their absolute values (n the products of an output); bounds moved outwards by twice that hold
    every output that the same dtype computes.

    Args:
        x, weight, bias, product: As in :func:`interval_product`.
    """
    size = torch.maximum(x.low.abs(), x.up.abs())
    largest = torch.maximum(weight.low.abs(), weight.up.abs())
    offset = None if bias is None else torch.maximum(bias.low.abs(), bias.up.abs())
    terms = 2 * weight.low[0].numel() + 4
    return 2 * terms * torch.finfo(size.dtype).eps * product(size, largest, offset)


def outwards(bounds: Interval, margin: Tensor) -> Interval:
    """Return bounds that are wider by a margin on either side."""
    return Interval(bounds.low - margin, bounds.mid, bounds.up + margin)


def exchanged(low: Tensor, mid: Tensor, up: Tensor) -> Interval:
    """Return three passes' outputs after the published two compare-exchanges, element by element.

    Low and mid are exchanged where they are out of order, then mid and up. This is no sort: low
    may still exceed mid, where the third was the smallest. Nor are they bounds of anything.
    """
    low, mid = torch.minimum(low, mid), torch.maximum(low, mid)
    return Interval(low, torch.minimum(mid, up), torch.maximum(mid, up))


def intersection(low: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Return the bounds (d,) of what boxes (n, d) have in common.

    Where they have nothing in common, both are the mean of the largest low and the smallest up.
    """
    low, up = low.amax(0), up.amin(0)
    middle = (low + up) / 2
    empty = up < low
    return torch.where(empty, middle, low), torch.where(empty, middle, up)
