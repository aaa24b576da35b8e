"""The reference operations against NumPy in float64, and in low precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hypermask_fast import reference
from tests.support.reference_cases import LOW, double, numpy_mask


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
