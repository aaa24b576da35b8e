"""Exact numbers with how far float32 may be off: running error analysis, to first order.

Higham, Accuracy and Stability of Numerical Algorithms, 3.3 and 4.2: each operation is off by an
epsilon of its result, beside what its operands are off; a sum of n terms, in any order, by n of the
sum of their magnitudes. A rounding is an epsilon, not a half, as matrix cores cut off.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

EPS = torch.finfo(torch.float32).eps
_OF_A_PRODUCT = 16
"""Roundings of a product of three tf32 ones (10), and of a mask and its product in one (6)."""


class Rounded(NamedTuple):
    """A float64 value on the host, and how far a float32 computation of it may be off."""

    value: Tensor
    error: Tensor

    @property
    def size(self) -> Tensor:
        """The largest magnitude that a computation may have found."""
        return self.value.abs() + self.error

    def plus(self, other: Rounded) -> Rounded:
        value, error = self.value + other.value, self.error + other.error
        return Rounded(value, error + EPS * (value.abs() + error))

    def minus(self, other: Rounded) -> Rounded:
        return self.plus(Rounded(-other.value, other.error))

    def times(self, other: Rounded) -> Rounded:
        value = self.value * other.value
        error = self.size * other.size - value.abs()
        return Rounded(value, error + EPS * (value.abs() + error))

    def over(self, other: Rounded) -> Rounded:
        """Return a quotient, whose divisor is positive and farther from 0 than it is off."""
        value = self.value / other.value
        error = (self.error + value.abs() * other.error) / (other.value - other.error)
        return Rounded(value, error + 2 * EPS * (value.abs() + error))

    def root(self) -> Rounded:
        """Return the root of numbers that are farther from 0 than they are off."""
        value = self.value.sqrt()
        error = self.error / (value + (self.value - self.error).sqrt())
        return Rounded(value, error + 2 * EPS * (value + error))

    def magnitude(self) -> Rounded:
        return Rounded(self.value.abs(), self.error)

    def sum(self, *axes: int) -> Rounded:
        axes = axes or tuple(range(self.value.dim()))
        value, sizes = self.value.sum(axes), self.size.sum(axes)
        terms = self.value.numel() // max(1, value.numel())
        return Rounded(value, self.error.sum(axes) + terms * EPS * sizes)

    def stored(self, dtype: torch.dtype) -> Rounded:
        """Return the numbers rounded to the nearest of a coarser dtype."""
        return Rounded(self.value, self.error + torch.finfo(dtype).eps * self.size)

    def transposed(self) -> Rounded:
        return Rounded(self.value.t(), self.error.t())

    def where(self, chosen: Tensor) -> Rounded:
        """Return the numbers where chosen, else an exact 0."""
        return Rounded(*(torch.where(chosen, part, 0) for part in self))


def exact(tensor: Tensor) -> Rounded:
    """Return the numbers of a tensor, which are what they are."""
    value = tensor.detach().to("cpu", torch.float64)
    return Rounded(value, torch.zeros_like(value))


def number(value: float) -> Rounded:
    """Return a number that is rounded to float32."""
    wide = torch.tensor(value, dtype=torch.float64)
    return Rounded(wide, EPS * wide.abs())


def multilinear(function: Callable[..., Tensor], *factors: Rounded, terms: int) -> Rounded:
    """Return sums of products of factors, such as of matrices.

    Args:
        function: Of the factors' values; 0 where one of them is, and linear in each.
        factors: What it takes.
        terms: The most products that a sum has.
    """
    value = function(*(f.value for f in factors))
    least, most = function(*(f.value.abs() for f in factors)), function(*(f.size for f in factors))
    return Rounded(value, most - least + (terms + _OF_A_PRODUCT) * EPS * most)


def matmul(a: Rounded, b: Rounded) -> Rounded:
    """Return a product of matrices, of float32's accuracy."""
    return multilinear(torch.matmul, a, b, terms=a.value.shape[-1])
