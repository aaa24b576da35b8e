"""Medians of repeated measurements, with intervals that no distribution is assumed for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

FEWEST = 6
"""Values that a 95 % interval takes: of five all are on one side in 1 of 16 cases."""


class Median(NamedTuple):
    """A median and its interval.

    Attributes:
        value: NaN without values.
        low, high: The interval; NaN where there are too few values for one.
        size: Values.
    """

    value: float
    low: float
    high: float
    size: int


def median(values: Sequence[float], level: float = 0.95) -> Median:
    """Return the median of values, and an interval for the median of what they are drawn from.

    The interval goes from the k-th smallest to the k-th largest value, with the largest k for which
    it misses the median with a probability of 1 - ``level`` at most: twice that of fewer than k of
    n tosses of a coin. It holds for independent values of any distribution.

    Args:
        values: (n,).
        level: Of the interval. Default 0.95.
    """
    ordered = sorted(values)
    n = len(ordered)
    if not n:
        return Median(math.nan, math.nan, math.nan, 0)
    middle = (ordered[(n - 1) // 2] + ordered[n // 2]) / 2
    k, ways, missed = 0, 1, 2
    while missed / 2**n <= 1 - level:
        k += 1
        ways = ways * (n - k + 1) // k
        missed += 2 * ways
    if not k:
        return Median(middle, math.nan, math.nan, n)
    return Median(middle, ordered[k - 1], ordered[n - k], n)
