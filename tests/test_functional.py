"""The public functions: checked arguments, and the choice of backend."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import hypermask_fast as hmf
from hypermask_fast import functional, reference
from hypermask_fast.backends import choice
from hypermask_fast.errors import ConfigError
from hypermask_fast.head import cuda
from hypermask_fast.kernels import tuning

VARIABLE = "HYPERMASK_FAST_BACKEND"


@pytest.fixture(autouse=True)
def _no_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)


GENERATOR = torch.Generator().manual_seed(0)
X, W, B, ZB, IMAGE, KERNEL = (
    torch.randn(shape, generator=GENERATOR)
    for shape in ((2, 3), (4, 3), (4,), (4,), (2, 3, 6, 6), (4, 3, 2, 2))
)
CUT = torch.tensor(0.3)

OPERATIONS: list[tuple[str, Callable[[str | None], Tensor | None]]] = [
    ("semi_binary_mask", lambda name: functional.semi_binary_mask(W, 30, backend=name)),
    ("mask_threshold", lambda name: functional.mask_threshold(W, 30, backend=name)),
    ("masked_linear", lambda name: functional.masked_linear(X, W, B, W, B, CUT, backend=name)),
    (
        "masked_conv2d",
        lambda name: functional.masked_conv2d(IMAGE, KERNEL, B, KERNEL, B, CUT, backend=name),
    ),
]
each_operation = pytest.mark.parametrize(
    ("op", "call"), [pytest.param(op, call, id=op) for op, call in OPERATIONS]
)


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


class TestBackend:
    @each_operation
    @pytest.mark.parametrize("name", ["auto", "reference", None])
    def test_names_that_run(
        self, op: str, call: Callable[[str | None], Tensor], name: str | None
    ) -> None:
        assert torch.equal(call(name), call("reference"))
        assert choice.resolve(op, W, name, faster=lambda: True) == "reference"

    @each_operation
    def test_forced_kernel_that_cannot_run(
        self, op: str, call: Callable[[str | None], Tensor], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        message = "backend 'triton' cannot run here: .* runs on CUDA tensors and this one is on cpu"
        with pytest.raises(ConfigError, match=message):
            call("triton")
        with functional.backend("triton"), pytest.raises(ConfigError, match=message):
            call(None)
        monkeypatch.setenv(VARIABLE, "triton")
        with pytest.raises(ConfigError, match=message):
            call(None)

    @pytest.mark.parametrize(
        ("name", "measured", "expected"),
        [("auto", True, "triton"), ("auto", False, "reference"), ("triton", False, "triton")],
    )
    def test_auto_takes_a_kernel_where_it_was_measured_to_be_faster(
        self, name: str, measured: bool, expected: str
    ) -> None:
        with FakeTensorMode():
            x = torch.empty(2, 3, device="cuda")
            assert choice.resolve("masked_linear", x, name, lambda: measured) == expected

    @pytest.mark.parametrize(
        ("name", "alternative_ms", "expected"),
        [
            pytest.param("auto", None, True, id="not-measured"),
            pytest.param("auto", 1.1, True, id="faster"),
            pytest.param("auto", 0.9, False, id="slower"),
            pytest.param("triton", 0.9, True, id="slower-but-forced"),
        ],
    )
    def test_auto_leaves_a_kernel_that_was_measured_to_be_slower(
        self,
        name: str,
        alternative_ms: float | None,
        expected: bool,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def measured(kernel: str, device: torch.device, **sizes: int) -> dict[str, Any] | None:
            assert (kernel, sizes) == ("head", {"rows": 2, "width": 3})
            return None if alternative_ms is None else {"ms": 1.0, "alternative_ms": alternative_ms}

        monkeypatch.setattr(tuning, "measured", measured)
        with FakeTensorMode():
            weight = torch.empty(2, 3, device="cuda")
            with functional.backend(name):
                assert cuda.takes(weight) is expected

    @pytest.mark.parametrize(
        ("op", "dtype", "triton", "why"),
        [
            (
                "masked_linear",
                torch.float64,
                True,
                "float32 or float16 or bfloat16, not torch.float64",
            ),
            ("mask_weights", torch.bfloat16, True, "takes float32, not torch.bfloat16"),
            ("softmax", torch.float32, True, "there is no kernel for softmax"),
            ("masked_linear", torch.float32, False, "triton is not installed"),
        ],
    )
    def test_why_a_kernel_cannot_run_on_cuda(
        self,
        op: str,
        dtype: torch.dtype,
        triton: bool,
        why: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(choice, "_HAS_TRITON", triton)
        with FakeTensorMode():
            x = torch.empty(2, 3, device="cuda", dtype=dtype)
            assert not choice.uses_kernels(op, x, "auto")
            with pytest.raises(ConfigError, match=why):
                choice.uses_kernels(op, x, "triton")

    @each_operation
    def test_unknown_name(self, op: str, call: Callable[[str | None], Tensor]) -> None:
        message = "backend is 'tritn' (did you mean 'triton'?); choose one of auto, triton, refer"
        with pytest.raises(ConfigError, match=re.escape(message)):
            call("tritn")

    def test_unknown_name_of_a_context(self) -> None:
        with (
            pytest.raises(ConfigError, match=r"backend is 'cuda'; choose one of"),
            functional.backend("cuda"),
        ):
            pass

    def test_unknown_name_in_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(VARIABLE, "referense")
        message = f"{VARIABLE} is 'referense' (did you mean 'reference'?); choose one of"
        with pytest.raises(ConfigError, match=re.escape(message)):
            functional.semi_binary_mask(W)

    def test_argument_before_context_before_environment(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert choice.requested() == "auto"
        monkeypatch.setenv(VARIABLE, "")
        assert choice.requested() == "auto"
        monkeypatch.setenv(VARIABLE, "triton")
        assert choice.requested() == "triton"
        with functional.backend("auto"):
            assert choice.requested() == "auto"
            assert choice.requested("reference") == "reference"
        assert choice.requested() == "triton"

    def test_contexts_nest_and_end_with_an_exception(self) -> None:
        def fail() -> None:
            with functional.backend("reference"), functional.backend("triton"):
                assert choice.requested() == "triton"
                functional.semi_binary_mask(W)

        with functional.backend("auto"):
            with functional.backend("reference"):
                assert choice.requested() == "reference"
            assert choice.requested() == "auto"
            with pytest.raises(ConfigError):
                fail()
            assert choice.requested() == "auto"

    def test_a_context_acts_in_its_own_thread(self) -> None:
        inside, done = threading.Event(), threading.Event()
        seen: list[str] = []

        def other() -> None:
            seen.append(choice.requested())
            with functional.backend("triton"):
                seen.append(choice.requested())
                inside.set()
                done.wait(10)

        thread = threading.Thread(target=other)
        with functional.backend("reference"):
            thread.start()
            assert inside.wait(10)
            assert choice.requested() == "reference"
        assert choice.requested() == "auto"
        done.set()
        thread.join(10)
        assert seen == ["auto", "triton"]

    def test_explain_tells_what_a_layer_ran_on_and_why(self) -> None:
        layer = hmf.MaskedLinear(3, 4)
        assert hmf.explain(layer, X) == ""
        with layer.masked(W):
            on_cpu = "masked_linear: no kernel, for the kernel of masked_linear runs on CUDA"
            assert hmf.explain(layer, X).startswith(on_cpu)
            with hmf.backend("reference"):
                assert hmf.explain(layer, X) == (
                    "masked_linear: PyTorch, as backend 'reference' asks"
                )

    def test_explain_tells_what_is_slower(self) -> None:
        with FakeTensorMode():
            x = torch.empty(2, 3, device="cuda")
            probe = torch.nn.Module()
            probe.forward = lambda: choice.resolve("masked_linear", x)
            assert "not measured to be faster" in hmf.explain(probe)
