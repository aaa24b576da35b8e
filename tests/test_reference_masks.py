"""The reference percentile and mask against NumPy in float64, and stated properties."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from hypermask_fast import reference
from tests.support.reference_cases import EPS, LOW, double, numpy_mask


class TestPercentile:
    @pytest.mark.parametrize("n", [1, 2, 3, 10, 101, 1000])
    @pytest.mark.parametrize("p", [0, 0.5, 7, 30.0, 33.3, 50, 95, 100])
    def test_is_numpys_linear_one(self, n: int, p: float) -> None:
        values = double(n, grad=False)
        expected = np.percentile(values.numpy(), p)
        # The positions may differ by rounding, 2 eps n, between neighbours up to the range apart.
        atol = EPS[torch.float64] * (2 * n + 4) * float(values.max() - values.min() + 1)
        np.testing.assert_allclose(reference.percentile(values, p), expected, rtol=0, atol=atol)

    def test_float32_is_the_float64_result_rounded_once(self) -> None:
        values = torch.randn(3, 4, 57)
        for p in (12.5, 50.0, 99.9):
            result = reference.percentile(values, p)
            assert result.dtype == torch.float32
            assert result.shape == ()
            expected = reference.percentile(values.double(), p)
            assert torch.equal(result, expected.float())

    def test_a_position_on_an_index_gives_that_element_exactly(self) -> None:
        ordered = double(101, grad=False).sort().values
        shuffled = ordered[torch.randperm(101)]
        for p in range(101):
            assert reference.percentile(shuffled, p) == ordered[p], p

    def test_ties_are_not_left_by_rounding(self) -> None:
        value = torch.tensor(0.1, dtype=torch.float64)
        for p in np.linspace(0, 100, 37):
            assert reference.percentile(value.expand(23), float(p)) == value

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.int64])
    def test_p_may_be_a_tensor(self, dtype: torch.dtype) -> None:
        values = torch.randn(50)
        result = reference.percentile(values, torch.tensor(30, dtype=dtype))
        assert torch.equal(result, reference.percentile(values, 30))

    def test_more_elements_than_float32_can_count(self) -> None:
        n = 2**24 + 4
        values = torch.arange(n, dtype=torch.int32)
        assert reference.percentile(values, 100 * (n - 3) / (n - 1)) == n - 3

    def test_nan_sorts_above_every_number(self) -> None:
        values = torch.tensor([2.0, math.nan, 1.0, 3.0, 0.0])
        assert reference.percentile(values, 75) == 3
        assert reference.percentile(values, 76).isnan()
        assert reference.percentile(values, 100).isnan()

    def test_infinity_beside_the_position_does_not_reach_it(self) -> None:
        assert reference.percentile(torch.tensor([1.0, 2.0, math.inf]), 50) == 2

    def test_carries_no_gradient(self) -> None:
        assert not reference.percentile(double(5), 30).requires_grad
        assert not reference.mask_threshold(double(5), 30).requires_grad

    @pytest.mark.parametrize("p", [-1e-9, 100.5, math.nan])
    def test_p_outside_its_range(self, p: float) -> None:
        with pytest.raises(ValueError, match=rf"p is {p}; give a percentage in \[0, 100\]"):
            reference.percentile(torch.ones(3), p)

    def test_a_tensor_p_outside_its_range_acts_as_the_nearer_end(self) -> None:
        values = torch.randn(7)
        assert reference.percentile(values, torch.tensor(130.0)) == values.max()
        assert reference.percentile(values, torch.tensor(-30.0)) == values.min()

    def test_no_elements(self) -> None:
        with pytest.raises(ValueError, match=r"shape \(0, 3\); .* at least one element"):
            reference.percentile(torch.ones(0, 3), 50)


class TestSemiBinaryMask:
    @pytest.mark.parametrize("p", ["0", "0.1", "7", "30", "33.3", "50", "95", "99.9", "100"])
    @pytest.mark.parametrize("n", [1, 2, 101, 400, 1001])
    def test_removes_ceil_of_the_position(self, n: int, p: str) -> None:
        logits = (torch.randperm(n) + 1).double() / n * torch.randn(n).sign()
        mask = reference.semi_binary_mask(logits, reference.mask_threshold(logits, float(p)))
        zeros = math.ceil(Fraction(p) * (n - 1) / 100)
        assert int((mask == 0).sum()) == zeros
        smallest = logits.abs().argsort()[:zeros]
        assert (mask[smallest] == 0).all()

    @pytest.mark.parametrize("p", [0, 30, 95])
    def test_is_numpys_formula(self, p: float) -> None:
        logits = double(13, 7)
        threshold = reference.mask_threshold(logits, p)
        expected = np.percentile(np.abs(np.tanh(logits.detach().numpy())), p)
        np.testing.assert_allclose(threshold, expected, rtol=1e-12)
        mask = reference.semi_binary_mask(logits, threshold)
        np.testing.assert_allclose(mask.detach(), numpy_mask(logits, p), rtol=4 * EPS[logits.dtype])

    def test_saturated_logits_tie_in_tanh_space(self) -> None:
        logits = torch.randn(30_000) * 12
        threshold = reference.mask_threshold(logits, 95)
        kept = reference.semi_binary_mask(logits, threshold) > 0
        # Float32 tanh is 1 beyond 9.02, which is 0.75 standard deviations: ties that all survive.
        assert threshold == 1
        assert torch.equal(kept, logits.tanh().abs() == 1)
        assert 0.43 < kept.double().mean() < 0.47
        by_size = logits.abs() >= np.percentile(logits.abs().numpy(), 95)
        assert int(by_size.sum()) == 1500
        assert (kept | ~by_size).all()

    @pytest.mark.parametrize("value", [0.0, 0.3, -0.3, 20.0])
    @pytest.mark.parametrize("dtype", [torch.float64, *LOW])
    def test_a_constant_tensor_is_kept(self, value: float, dtype: torch.dtype) -> None:
        logits = torch.full((17,), value, dtype=dtype)
        for p in (0, 29.7, 50, 100):
            mask = reference.semi_binary_mask(logits, reference.mask_threshold(logits, p))
            assert torch.equal(mask, logits.tanh().abs())

    def test_gradient_is_that_of_tanh_where_kept_and_zero_elsewhere(self) -> None:
        logits, upstream = double(200), double(200, grad=False)
        mask = reference.semi_binary_mask(logits, reference.mask_threshold(logits, 40))
        (grad,) = torch.autograd.grad(mask, logits, upstream)
        z = logits.detach().numpy()
        expected = upstream.numpy() * np.sign(z) * (1 - np.tanh(z) ** 2)
        removed = numpy_mask(logits, 40) == 0
        assert removed.sum() == 80
        assert (grad.numpy()[removed] == 0).all()
        np.testing.assert_allclose(
            grad.numpy()[~removed], expected[~removed], rtol=1e-13, atol=1e-15
        )

    def test_an_infinite_upstream_gradient_stops_at_removed_entries(self) -> None:
        logits = torch.tensor([0.1, 2.0], requires_grad=True)
        mask = reference.semi_binary_mask(logits, torch.tensor(0.5))
        (grad,) = torch.autograd.grad(mask, logits, torch.tensor([math.inf, 1.0]))
        assert grad[0] == 0

    @pytest.mark.parametrize("p", [0, 30, 100])
    def test_nan_reaches_the_output(self, p: float) -> None:
        logits = torch.randn(4, 5)
        logits[1, 2] = math.nan
        threshold = reference.mask_threshold(logits, p)
        mask = reference.semi_binary_mask(logits, threshold)
        assert mask.isnan().sum() == 1
        assert mask[1, 2].isnan()
        out = reference.masked_linear(
            torch.ones(2, 5), torch.ones(4, 5), None, logits, None, threshold
        )
        assert out[:, 1].isnan().all()

    def test_no_threshold_keeps_every_entry(self) -> None:
        logits = torch.randn(9)
        assert torch.equal(reference.semi_binary_mask(logits), logits.tanh().abs())
