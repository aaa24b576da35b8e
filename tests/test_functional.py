"""The public functions: results and checked arguments."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hypermask_fast import functional, reference
from tests.support.functional_cases import CUT, IMAGE, KERNEL, VARIABLE, ZB, B, W, X


@pytest.fixture(autouse=True)
def _no_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)


class TestResults:
    @pytest.mark.parametrize("sparsity", [0, 30.0, torch.tensor(30.0), 100])
    def test_mask_is_the_references(self, sparsity: float | Tensor) -> None:
        expected = reference.semi_binary_mask(W, reference.mask_threshold(W, sparsity))
        assert torch.equal(functional.semi_binary_mask(W, sparsity), expected)

    def test_sparsity_is_zero_unless_given(self) -> None:
        assert torch.equal(functional.semi_binary_mask(W), W.tanh().abs())

    def test_threshold_is_none_where_every_entry_is_kept(self) -> None:
        assert functional.mask_threshold(W, 0) is None
        threshold = functional.mask_threshold(W, torch.tensor(0.0))
        assert threshold is not None
        assert threshold == W.tanh().abs().min()

    def test_linear_and_conv_are_the_references(self) -> None:
        linear = (X, W, B, W, ZB, CUT, CUT)
        assert torch.equal(functional.masked_linear(*linear), reference.masked_linear(*linear))
        conv = (IMAGE, KERNEL[:, :1].repeat(3, 1, 1, 1)[:6], None, KERNEL.view(12, 1, 2, 2)[:6])
        options = {"stride": 2, "padding": (1, 2), "dilation": (2, 1), "groups": 3}
        assert torch.equal(
            functional.masked_conv2d(*conv, **options), reference.masked_conv2d(*conv, **options)
        )


MASK_ERRORS = [
    pytest.param(
        {"weight_logits": W.T},
        ValueError,
        "weight_logits has shape (3, 4); it must have the weight's shape (4, 3)",
        id="weight-shape",
    ),
    pytest.param(
        {"weight_logits": W[:1]},
        ValueError,
        "weight_logits has shape (1, 3); it must have the weight's shape (4, 3)",
        id="would-broadcast",
    ),
    pytest.param(
        {"weight_logits": W.to("meta")},
        ValueError,
        "weight_logits is on meta and the weight on cpu; move them to one device",
        id="device",
    ),
    pytest.param(
        {"weight_logits": W > 0},
        TypeError,
        "weight_logits is torch.bool; give a floating-point tensor",
        id="bool",
    ),
    pytest.param(
        {"weight_logits": None},
        TypeError,
        "weight_logits is a NoneType; give a floating-point tensor",
        id="none",
    ),
    pytest.param(
        {"weight_threshold": 0.3},
        TypeError,
        "weight_threshold is 0.3; give the 0-d tensor of mask_threshold(), or None",
        id="threshold-number",
    ),
    pytest.param(
        {"weight_threshold": torch.ones(4)},
        ValueError,
        "weight_threshold has shape (4,); give the 0-d tensor of mask_threshold()",
        id="threshold-shape",
    ),
    pytest.param(
        {"bias_logits": ZB[:2]},
        ValueError,
        "bias_logits has shape (2,); it must have the bias's shape (4,)",
        id="bias-shape",
    ),
    pytest.param(
        {"bias_threshold": CUT},
        ValueError,
        "and bias_logits is None; give both or neither",
        id="bias-threshold-alone",
    ),
    pytest.param(
        {"bias": None, "bias_logits": ZB},
        ValueError,
        "bias_logits has shape (4,) and the bias is None; leave bias_logits out",
        id="logits-without-bias",
    ),
    pytest.param(
        {"bias": None, "bias_threshold": CUT},
        ValueError,
        "and bias_logits is None; give both or neither",
        id="threshold-without-bias",
    ),
]


class TestErrors:
    @pytest.mark.parametrize(("wrong", "error", "message"), MASK_ERRORS)
    def test_masked_operations(
        self, wrong: dict[str, object], error: type[Exception], message: str
    ) -> None:
        arguments = {"x": X, "weight": W, "bias": B, "weight_logits": W} | wrong
        for operation in (functional.masked_linear, functional.masked_conv2d):
            with pytest.raises(error, match=re.escape(message)) as raised:
                operation(**arguments)  # type: ignore[arg-type]
            assert "\n" not in str(raised.value)

    @pytest.mark.parametrize("function", [functional.mask_threshold, functional.semi_binary_mask])
    @pytest.mark.parametrize(
        ("logits", "sparsity", "error", "message"),
        [
            pytest.param(
                W, 100.5, ValueError, "sparsity is 100.5; give a percentage in [0, 100]", id="above"
            ),
            pytest.param(
                W, -1, ValueError, "sparsity is -1; give a percentage in [0, 100]", id="below"
            ),
            pytest.param(W, float("nan"), ValueError, "sparsity is nan; give a", id="nan"),
            pytest.param(
                W,
                torch.ones(2),
                ValueError,
                "sparsity has shape (2,); give a 0-d tensor",
                id="shape",
            ),
            pytest.param(
                W.int(),
                30,
                TypeError,
                "logits is torch.int32; give a floating-point tensor",
                id="integer",
            ),
            pytest.param(
                W.numpy(), 30, TypeError, "logits is a ndarray; give a floating-point", id="numpy"
            ),
            pytest.param(W[:0], 30, ValueError, "shape (0, 3); a percentile needs", id="empty"),
        ],
    )
    def test_sparsity_and_logits(
        self,
        function: Callable[..., Tensor],
        logits: Tensor,
        sparsity: float,
        error: type[Exception],
        message: str,
    ) -> None:
        with pytest.raises(error, match=re.escape(message)):
            function(logits, sparsity)
