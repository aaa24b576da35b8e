"""Intervals of medians against the binomial distribution, and their coverage."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest

from hypermask_fast.metrics.medians import FEWEST, median


def rank(n: int) -> int:
    """The largest k whose interval, k-th smallest to k-th largest, misses in 1 of 20 at most."""
    below = itertools.accumulate(math.comb(n, i) for i in range(n // 2))
    return sum(2 * Fraction(ways, 2**n) <= Fraction(1, 20) for ways in below)


@pytest.mark.parametrize("n", [*range(1, 40), 100, 1100])
def test_the_interval_has_the_ranks_of_the_binomial_distribution(n: int) -> None:
    values = np.random.default_rng(n).permutation(n).astype(float).tolist()
    found = median(values)
    assert found.value == np.median(values)
    assert found.size == n
    k = rank(n)
    assert (k > 0) == (n >= FEWEST)
    if k:
        assert (found.low, found.high) == (k - 1, n - k)
    else:
        assert math.isnan(found.low)
        assert math.isnan(found.high)


def test_the_ranks_are_those_of_published_tables() -> None:
    # Conover, Practical Nonparametric Statistics, 95 % for the median: n, and the lower rank.
    assert [rank(n) for n in (6, 10, 20, 50, 100)] == [1, 2, 6, 18, 40]


def test_nothing_has_no_median() -> None:
    found = median([])
    assert math.isnan(found.value)
    assert found.size == 0
