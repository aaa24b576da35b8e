"""Means with intervals, and paired tests, of what runs of several seeds ended with.

The seed is the unit: intervals and tests tell of other seeds of the same runs on the same test
data, not of other test data.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

_Array = NDArray[np.float64]
_TINY = 1e-300
_MOST_FLIPS = 20
# Differences of accuracies that are equal in exact arithmetic are so to this share of them.
_ROUNDING = 1e-10


def incomplete_beta(a: float, b: float, x: float) -> float:
    """Return the regularized incomplete beta function I_x(a, b), by its continued fraction.

    Lentz's evaluation of DLMF 8.17.22; beyond the mean of the distribution the other tail is
    taken, where the fraction converges fast.

    Args:
        a, b: Positive.
        x: From 0 to 1.
    """
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - incomplete_beta(b, a, 1 - x)
    log = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    front = math.exp(log + a * math.log(x) + b * math.log1p(-x)) / a
    c, d = 1.0, 1 / (1 - (a + b) * x / (a + 1) or _TINY)
    result = d
    for m in range(1, 1000):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        before = result
        for term in (even, odd):
            d = 1 / (1 + term * d or _TINY)
            c = 1 + term / c or _TINY
            result *= c * d
        if abs(result - before) <= 1e-16 * abs(result):
            break
    return front * result


def student_t_tails(t: float, df: float) -> float:
    """Return the probability that Student's t is beyond ``t`` on either side.

    Args:
        t: A number, of either sign.
        df: Degrees of freedom, positive.
    """
    square = t * t
    if square < df:  # where df / (df + square) would round to 1
        return 1 - incomplete_beta(0.5, df / 2, square / (df + square))
    return incomplete_beta(df / 2, 0.5, df / (df + square))


def student_t_quantile(level: float, df: float) -> float:
    """Return the t within whose two signs Student's t is with a probability of ``level``.

    Args:
        level: More than 0, less than 1: 0.95 gives the quantile 0.975.
        df: Degrees of freedom, positive.
    """
    high = 1.0
    while student_t_tails(high, df) > 1 - level:
        high *= 2
    low = 0.0
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if student_t_tails(middle, df) > 1 - level else (low, middle)
    return high


class Interval(NamedTuple):
    """A mean of independent values, and how far it may be off.

    Attributes:
        mean: NaN without values.
        half: Half the 95 % interval by Student's t: t * s / sqrt(n), with n - 1 degrees of freedom;
            NaN for fewer than two values.
        size: n.
    """

    mean: float
    half: float
    size: int


def interval(values: ArrayLike, level: float = 0.95) -> Interval:
    """Return mean and interval of values; those that are NaN are left out.

    Args:
        values: (n,).
        level: Of the interval. Default 0.95.
    """
    given = np.asarray(values, dtype=np.float64)
    found = given[~np.isnan(given)]
    count = len(found)
    if count == 0:
        return Interval(math.nan, math.nan, 0)
    if count == 1:
        return Interval(float(found[0]), math.nan, 1)
    error = float(found.std(ddof=1)) / math.sqrt(count)
    return Interval(float(found.mean()), student_t_quantile(level, count - 1) * error, count)


def _scaled(differences: ArrayLike) -> tuple[_Array, float]:
    """Return differences, and what is zero beside them."""
    found = np.asarray(differences, dtype=np.float64)
    return found, _ROUNDING * max(1.0, float(np.abs(found).max(initial=0.0)))


def paired_t(differences: ArrayLike) -> float:
    """Return the two-sided p of Student's paired t-test: is the mean difference zero?

    It takes the differences as drawn from a normal distribution, which a few seeds cannot show. 1
    where all are zero; NaN for fewer than two, or where they are all the same, for which t has no
    value.

    Args:
        differences: (n,), a value for each pair.
    """
    found, zero = _scaled(differences)
    if len(found) and np.abs(found).max() <= zero:
        return 1.0
    if len(found) < 2 or np.ptp(found) <= zero:
        return math.nan
    t = float(found.mean()) / (float(found.std(ddof=1)) / math.sqrt(len(found)))
    return student_t_tails(t, len(found) - 1)


def sign_flips(differences: ArrayLike) -> float:
    """Return the exact two-sided p of the permutation test of pairs (Fisher).

    The share of all 2^n choices of signs whose sum is at least as far from zero. It needs no
    distribution, only that without an effect either of a pair could have been the other; but it is
    never below 2^(1 - n): 0.0625 for five pairs, so that no five seeds can show a difference at
    5 %. NaN without pairs or for more than 20.

    Args:
        differences: (n,), a value for each pair.
    """
    found, zero = _scaled(differences)
    if not 0 < len(found) <= _MOST_FLIPS:
        return math.nan
    # The sign of the first one halves the choices: the other half mirrors them.
    sums = found[:1]
    for difference in found[1:]:
        sums = np.concatenate((sums + difference, sums - difference))
    return float(np.mean(np.abs(sums) >= abs(found.sum()) - zero))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values after Holm's correction for as many tests, in the given order.

    The k-th smallest of m is multiplied by m - k + 1, and is at least as large as those before it:
    the chance that any true null hypothesis is rejected stays at the level. A NaN stays one, and
    counts as a test.

    Args:
        p_values: One for each test.
    """
    adjusted = [math.nan] * len(p_values)
    largest = 0.0
    known = [i for i, p in enumerate(p_values) if not math.isnan(p)]
    for rank, i in enumerate(sorted(known, key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted
