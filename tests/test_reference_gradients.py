"""First and second derivatives of the reference operations, by finite differences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from hypermask_fast import reference
from tests.support.reference_cases import away_from_zero, double, threshold_between


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
