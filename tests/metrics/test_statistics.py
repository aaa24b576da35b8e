"""Intervals and paired tests against closed forms, published tables and worked examples."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest

from hypermask_fast.metrics.statistics import (
    holm,
    incomplete_beta,
    interval,
    paired_t,
    sign_flips,
    student_t_quantile,
    student_t_tails,
)


@pytest.mark.parametrize("x", [0.0, 1e-6, 0.1, 0.5, 0.77, 1 - 1e-6, 1.0])
def test_incomplete_beta_of_whole_numbers_is_a_binomial_sum(x: float) -> None:
    for a, b in product(range(1, 7), repeat=2):
        n = a + b - 1
        expected = sum(math.comb(n, k) * x**k * (1 - x) ** (n - k) for k in range(a, n + 1))
        assert incomplete_beta(a, b, x) == pytest.approx(expected, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("t", [0.0, 1e-8, -0.3, 1.0, 2.5, -12.0, 1e6])
def test_tails_have_the_closed_forms_of_few_degrees(t: float) -> None:
    x = abs(t)
    closed = {
        1: 2 / math.pi * math.atan2(1, x),
        2: 1 - x / math.sqrt(2 + x * x),
        3: 1 - 2 / math.pi * (x / math.sqrt(3) / (1 + x * x / 3) + math.atan(x / math.sqrt(3))),
        4: 1 - x * (x * x + 6) / (x * x + 4) ** 1.5,
    }
    for df, expected in closed.items():
        # Differences from 1 lose what is below its rounding.
        assert student_t_tails(t, df) == pytest.approx(expected, rel=1e-10, abs=1e-14), df


def test_tails_of_many_degrees_are_the_normal_ones() -> None:
    for t in (0.5, 1.96, 3.0):
        assert student_t_tails(t, 1e7) == pytest.approx(math.erfc(t / math.sqrt(2)), rel=1e-5)


def test_tails_are_those_of_the_density_summed() -> None:
    for df in (5, 9, 30):
        middle = (np.arange(200_000) + 0.5) * 1e-5  # from 0 to 2
        log = math.lgamma((df + 1) / 2) - math.lgamma(df / 2) - 0.5 * math.log(df * math.pi)
        inside = 2e-5 * np.exp(log - (df + 1) / 2 * np.log1p(middle**2 / df)).sum()
        assert student_t_tails(2.0, df) == pytest.approx(1 - inside, abs=1e-9)


# The quantiles 0.975 and 0.995 of printed tables.
@pytest.mark.parametrize(
    ("level", "df", "expected"),
    [
        *((0.95, 1, 12.7062), (0.95, 2, 4.3027), (0.95, 4, 2.7764), (0.95, 9, 2.2622)),
        *((0.95, 30, 2.0423), (0.99, 1, 63.6567), (0.99, 4, 4.6041), (0.99, 120, 2.6174)),
    ],
)
def test_quantiles_are_those_of_tables(level: float, df: int, expected: float) -> None:
    found = student_t_quantile(level, df)
    assert found == pytest.approx(expected, abs=5e-5)
    assert student_t_tails(found, df) == pytest.approx(1 - level, rel=1e-9)


def test_interval_of_five_values() -> None:
    # Variance 2.5: 2.776445 * sqrt(2.5 / 5).
    found = interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (found.mean, found.size) == (3.0, 5)
    assert found.half == pytest.approx(1.963243, abs=1e-6)
    assert interval([1.0, math.nan, 3.0]).mean == 2.0
    assert math.isnan(interval([7.0]).half)
    assert interval([7.0]).mean == 7.0
    assert math.isnan(interval([]).mean)
    assert interval([99.5] * 3).half == 0.0


def test_interval_holds_the_mean_of_nineteen_in_twenty_samples() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, (2000, 5))
    found = [interval(row) for row in values]
    share = np.mean([abs(one.mean - 3.0) <= one.half for one in found])
    assert abs(share - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 2000)


def test_paired_t_of_a_worked_example() -> None:
    # Student's sleep data: t = -4.0621 with 9 degrees of freedom, p = 0.002833.
    first = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
    second = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
    assert paired_t(np.subtract(first, second)) == pytest.approx(0.002833, abs=5e-7)


def test_paired_t_without_variance_says_nothing() -> None:
    assert paired_t([0.0] * 5) == 1.0
    assert math.isnan(paired_t([0.5] * 5))
    assert math.isnan(paired_t([99.9 - 99.4, 50.5 - 50.0, 7.7 - 7.2]))  # but for rounding
    assert math.isnan(paired_t([1.0]))


def test_sign_flips_are_all_counted() -> None:
    generator = np.random.default_rng(1)
    for size in (1, 2, 5, 8):
        differences = generator.normal(0.5, 1.0, size)
        signs = np.array(list(product((1, -1), repeat=size)))
        expected = np.mean(np.abs(signs @ differences) >= abs(differences.sum()) - 1e-9)
        assert sign_flips(differences) == expected
    assert sign_flips([1.0, 2.0, 3.0, 4.0, 5.0]) == 2 / 32
    assert sign_flips([0.0] * 5) == 1.0
    # Sums that tie in exact arithmetic count, though not all are equal in floating point.
    assert sign_flips([-0.4, 0.6, 0.3, -0.9]) == 14 / 16
    assert sign_flips([0.1, 0.2, 0.3]) == 2 / 8
    assert math.isnan(sign_flips([1.0] * 21))
    assert math.isnan(sign_flips([]))


def test_holm_of_a_worked_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.5]) == [1.0, 1.0]
    found = holm([math.nan, 0.01])
    assert math.isnan(found[0])
    assert found[1] == pytest.approx(0.02)
    assert holm([]) == []
