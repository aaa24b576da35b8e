"""The reference operations against NumPy in float64, finite differences, and stated properties."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from hypermask_fast import reference

EPS = {dtype: torch.finfo(dtype).eps for dtype in (torch.float64, torch.float32)}
LOW = (torch.float32, torch.bfloat16, torch.float16)


def double(*shape: int, grad: bool = True) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=grad)


def away_from_zero(*shape: int) -> Tensor:
    """Logits whose size is in [0.2, 1.2]: no kink of |tanh| within reach of a finite difference."""
    size = torch.rand(*shape, dtype=torch.float64) + 0.2
    return (size * torch.randn(*shape).sign()).requires_grad_()


def threshold_between(logits: Tensor, share: float = 0.4) -> Tensor:
    """A threshold midway between two neighbouring mask values."""
    values = logits.detach().tanh().abs().flatten().sort().values
    index = int(share * (len(values) - 1))
    return (values[index] + values[index + 1]) / 2


def numpy_mask(logits: Tensor, p: float = 0.0) -> np.ndarray:
    mask = np.abs(np.tanh(logits.detach().double().numpy()))
    return np.where(mask >= np.percentile(mask, p), mask, 0.0)


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


class TestFormulas:
    def test_mask_logits(self) -> None:
        weight, bias, hidden = double(7, 3), double(7), double(2, 3)
        expected = (hidden @ weight.T).detach().numpy()
        np.testing.assert_allclose(
            reference.mask_logits(weight, None, hidden).detach(), expected, rtol=1e-14, atol=1e-15
        )
        np.testing.assert_allclose(
            reference.mask_logits(weight, bias, hidden).detach(),
            expected + bias.detach().numpy(),
            rtol=1e-14,
            atol=1e-15,
        )

    def test_masked_linear(self) -> None:
        x, weight, bias = double(5, 6), double(4, 6), double(4)
        zw, zb = double(4, 6), double(4)
        thresholds = reference.mask_threshold(zw, 50), reference.mask_threshold(zb, 30)
        x_np, w, b = (t.detach().numpy() for t in (x, weight, bias))
        masked = x_np @ (w * numpy_mask(zw, 50)).T
        for actual, expected in (
            (
                reference.masked_linear(x, weight, bias, zw, zb, *thresholds),
                masked + b * numpy_mask(zb, 30),
            ),
            (reference.masked_linear(x, weight, bias, zw, None, thresholds[0]), masked + b),
            (reference.masked_linear(x, weight, None, zw, None, thresholds[0]), masked),
        ):
            np.testing.assert_allclose(actual.detach(), expected, rtol=1e-13, atol=1e-14)

    def test_masked_conv2d(self) -> None:
        x, weight, bias = double(2, 3, 5, 6), double(4, 3, 2, 3), double(4)
        zw, zb = double(4, 3, 2, 3), double(4)
        actual = reference.masked_conv2d(
            x, weight, bias, zw, zb, reference.mask_threshold(zw, 30), stride=(1, 2)
        )
        w = weight.detach().numpy() * numpy_mask(zw, 30)
        windows = np.lib.stride_tricks.sliding_window_view(x.detach().numpy(), (2, 3), (2, 3))
        expected = np.einsum("nchwij,ocij->nohw", windows[:, :, :, ::2], w)
        expected += (bias.detach().numpy() * numpy_mask(zb))[:, None, None]
        np.testing.assert_allclose(actual.detach(), expected, rtol=1e-13, atol=1e-14)

    def test_mask_weights(self) -> None:
        weights, logits = [double(3, 4), double(3)], [double(3, 4), double(3)]
        thresholds = [reference.mask_threshold(logits[0], 50), None]
        products, masks = reference.mask_weights(weights, logits, thresholds)
        for w, z, p, product, mask in zip(weights, logits, (50, 0), products, masks, strict=True):
            np.testing.assert_allclose(mask.detach(), numpy_mask(z, p), rtol=1e-15)
            assert torch.equal(product, w * mask)
        with pytest.raises(ValueError, match="zip"):
            reference.mask_weights(weights, logits, thresholds[:1])

    def test_output_regularizer(self) -> None:
        logits, targets = double(3, 50), double(3, 50, grad=False)
        expected = np.square(logits.detach().numpy() - targets.numpy()).sum(axis=1).mean()
        actual = reference.output_regularizer(logits, targets)
        np.testing.assert_allclose(actual.detach(), expected, rtol=1e-14)
        (grad,) = torch.autograd.grad(actual, logits)
        np.testing.assert_allclose(grad, (2 / 3 * (logits - targets)).detach(), rtol=1e-14)
        assert reference.output_regularizer(targets, targets.clone()).item() == 0.0

    def test_l1_drift(self) -> None:
        shapes = ((3, 4), (3,))
        weights, old, masks = ([double(*s, grad=False) for s in shapes] for _ in range(3))
        pairs = [(w - o).numpy() for w, o in zip(weights, old, strict=True)]
        plain = sum(np.abs(d).sum() for d in pairs)
        masked = sum(np.abs(d * m.numpy()).sum() for d, m in zip(pairs, masks, strict=True))
        np.testing.assert_allclose(reference.l1_drift(weights, old), plain, rtol=1e-14)
        np.testing.assert_allclose(reference.l1_drift(weights, old, masks), masked, rtol=1e-14)
        assert reference.l1_drift(iter(weights), iter(weights), iter(masks)).item() == 0.0

    def test_l1_drift_sends_no_gradient_to_weights_that_did_not_move(self) -> None:
        weights = [double(4)]
        reference.l1_drift(weights, [weights[0].detach().clone()]).backward()
        assert (weights[0].grad == 0).all()


def linear_case(bias: bool, bias_logits: bool, p: bool) -> tuple[Callable[..., Tensor], Any]:
    zw, zb = away_from_zero(2, 3), away_from_zero(2)
    cut = (threshold_between(zw), threshold_between(zb)) if p else (None, None)

    def run(x: Tensor, w: Tensor, zw: Tensor, b: Tensor, zb: Tensor) -> Tensor:
        return reference.masked_linear(
            x,
            w,
            b if bias else None,
            zw,
            zb if bias_logits else None,
            cut[0],
            cut[1] if bias_logits else None,
        )

    unused = [t.detach() for t in (double(2), zb)]
    return run, (
        double(2, 3),
        double(2, 3),
        zw,
        double(2) if bias else unused[0],
        zb if bias_logits else unused[1],
    )


def conv_case(kernel: int = 2, **options: Any) -> tuple[Callable[..., Tensor], Any]:
    zw = away_from_zero(2, 2 // options.get("groups", 1), kernel, kernel)
    zb = away_from_zero(2)
    cut = threshold_between(zw)

    def run(x: Tensor, w: Tensor, b: Tensor, zw: Tensor, zb: Tensor) -> Tensor:
        return reference.masked_conv2d(x, w, b, zw, zb, cut, None, **options)

    return run, (double(1, 2, 4, 3), double(*zw.shape), double(2), zw, zb)


def mask_case(p: float | None) -> tuple[Callable[..., Tensor], Any]:
    logits = away_from_zero(4, 3)
    fixed = threshold_between(logits)

    def run(z: Tensor) -> Tensor:
        return reference.semi_binary_mask(z, fixed if p is None else reference.mask_threshold(z, p))

    return run, (logits,)


def drift_case(masked: bool) -> tuple[Callable[..., Tensor], Any]:
    old = double(5, grad=False)
    weights = (old + away_from_zero(5)).detach().requires_grad_()
    if masked:
        return lambda w, m: reference.l1_drift([w], [old], [m]), (weights, away_from_zero(5))
    return lambda w: reference.l1_drift([w], [old]), (weights,)


GRADIENTS = [
    pytest.param(lambda: mask_case(None), id="mask-fixed-threshold"),
    pytest.param(lambda: mask_case(30), id="mask-own-percentile"),
    pytest.param(lambda: linear_case(True, True, True), id="linear"),
    pytest.param(lambda: linear_case(True, False, True), id="linear-plain-bias"),
    pytest.param(lambda: linear_case(False, False, False), id="linear-no-bias-p0"),
    pytest.param(lambda: conv_case(), id="conv"),
    pytest.param(lambda: conv_case(stride=2, padding=1), id="conv-stride-padding"),
    pytest.param(lambda: conv_case(stride=(1, 2), padding=(1, 0)), id="conv-pairs"),
    pytest.param(lambda: conv_case(dilation=2), id="conv-dilation"),
    pytest.param(lambda: conv_case(groups=2), id="conv-groups"),
    pytest.param(lambda: conv_case(kernel=3, padding="same"), id="conv-same"),
    pytest.param(
        lambda: (
            lambda w, z: torch.cat(reference.mask_weights([w], [z], [threshold_between(z)])[0]),
            (double(3, 2), away_from_zero(3, 2)),
        ),
        id="mask-weights",
    ),
    pytest.param(
        lambda: (reference.mask_logits, (double(5, 2), double(5), double(3, 2))), id="mask-logits"
    ),
    pytest.param(
        lambda: (reference.output_regularizer, (double(2, 4), double(2, 4))),
        id="output-regularizer",
    ),
    pytest.param(lambda: drift_case(False), id="drift"),
    pytest.param(lambda: drift_case(True), id="drift-masked"),
]


@pytest.mark.parametrize("case", GRADIENTS)
def test_first_and_second_derivatives(case: Callable[[], tuple[Any, Any]]) -> None:
    function, inputs = case()
    assert gradcheck(function, inputs)
    assert gradgradcheck(function, inputs)


@pytest.mark.parametrize("dtype", LOW)
def test_low_precision_stays_near_float64(dtype: torch.dtype) -> None:
    """Same inputs in float64: errors of some roundings per term of the sums of 12 and 18."""
    eps = torch.finfo(dtype).eps

    def close(actual: Tensor, expected: Tensor) -> None:
        assert actual.dtype == dtype
        error = (actual.double() - expected).abs().max() / expected.abs().max()
        assert error < 8 * eps

    weight, zw, x = (torch.randn(6, 12).to(dtype) for _ in range(3))
    bias, zb = (torch.randn(6).to(dtype) for _ in range(2))
    image = torch.randn(2, 2, 5, 5).to(dtype)
    kernel, zk = (torch.randn(6, 2, 3, 3).to(dtype) for _ in range(2))
    cut, kernel_cut = reference.mask_threshold(zw, 30), reference.mask_threshold(zk, 30)
    assert cut.dtype == dtype
    linear = (x, weight, bias, zw, zb, cut)
    conv = (image, kernel, bias, zk, zb, kernel_cut)
    close(reference.masked_linear(*linear), reference.masked_linear(*(t.double() for t in linear)))
    close(reference.masked_conv2d(*conv), reference.masked_conv2d(*(t.double() for t in conv)))
    drift = reference.l1_drift([weight], [x], [zw])
    close(drift, reference.l1_drift([weight.double()], [x.double()], [zw.double()]))
    regularizer = reference.output_regularizer(weight, x)
    close(regularizer, reference.output_regularizer(weight.double(), x.double()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_masks_of_float32_logits_multiply_weights_of_another_dtype(dtype: torch.dtype) -> None:
    weight, bias, x = (torch.randn(*s).to(dtype) for s in ((4, 6), (4,), (3, 6)))
    zw, zb = torch.randn(4, 6), torch.randn(4)
    cut = reference.mask_threshold(zw, 30)
    products, masks = reference.mask_weights([weight, bias], [zw, zb], [cut, None])
    assert [m.dtype for m in masks] == [torch.float32] * 2
    for w, m, product in zip((weight, bias), masks, products, strict=True):
        assert torch.equal(product, (w.float() * m).to(dtype))
    out = reference.masked_linear(x, weight, bias, zw, zb, cut)
    assert torch.equal(out, F.linear(x, *products))
