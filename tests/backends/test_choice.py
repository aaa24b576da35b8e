"""The choice of backend: names, where they are asked for, and what cannot run."""

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
from hypermask_fast import functional
from hypermask_fast.backends import choice, proof
from hypermask_fast.errors import ConfigError
from hypermask_fast.head import cuda
from hypermask_fast.kernels import tuning
from tests.support.functional_cases import VARIABLE, W, X, each_operation


@pytest.fixture(autouse=True)
def _no_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    # The kernels of a device that is not there are taken for right.
    monkeypatch.setattr(proof, "_left_out", {0: {}})


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
        # As if it were no fake.
        monkeypatch.setattr(choice, "is_followed", lambda: False)
        monkeypatch.setattr(choice, "is_plain", lambda tensor: True)
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
        monkeypatch.setattr(choice, "HAS_TRITON", triton)
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
