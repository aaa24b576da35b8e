"""Operations on a device that has a faulty kernel: without it, and right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hypermask_fast import functional
from hypermask_fast.backends import choice, proof
from hypermask_fast.errors import ConfigError
from hypermask_fast.head import cuda, passes
from hypermask_fast.head.types import HeadStep
from hypermask_fast.kernels import ops
from hypermask_fast.kernels.selfcheck import run
from hypermask_fast.layers import functional as layers
from hypermask_fast.masks import top_k
from hypermask_fast.masks.packed import pack
from hypermask_fast.masks.types import MaskRequest
from hypermask_fast.masks.weights import mask_weights
from tests.support.head_cases import head_of, make_head, options_of, tensors
from tests.support.planted import plant

ROWS, WIDTH = 37, 21


class StandIn(proof.Machine):
    """The interpreter in place of a GPU; a GPU stands for itself."""

    def is_there(self) -> bool:
        return True

    def is_capturing(self) -> bool:
        return False

    def versions(self, device: torch.device) -> dict[str, str]:
        return {"device": "the interpreter"}


@pytest.fixture
def begins(
    tmp_path: Path, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], None]:
    """Begin a process that sends what is on CUDA, or stands for it, to the kernels of an operation.

    Only those are checked, by a case each.
    """
    monkeypatch.delenv("HYPERMASK_FAST_BACKEND", raising=False)
    # Not the native passes' own, which would be compiled anew.
    monkeypatch.setattr(proof, "_FOLDERS", (lambda *, make=True: tmp_path,))
    monkeypatch.setattr(proof, "_left_out", {})
    monkeypatch.setattr(proof, "_unsaid", {})
    for layer in ("linear", "conv2d"):
        monkeypatch.setattr(layers, f"_{layer}_is_faster", lambda *arguments: True)
    if device.type == "cpu":
        monkeypatch.setattr(proof, "machine", StandIn())
        monkeypatch.setattr(choice, "_why_no_kernel", lambda op, tensor: None)
        monkeypatch.setattr(top_k, "_runs_natively", lambda *arguments: False)
        monkeypatch.setattr(cuda, "takes", lambda weight: choice.uses_kernels("head", weight))
        for name in ("mask_thresholds", "mask_weights", "mask_weights_backward", "hidden_grad"):
            own = f"_{name.replace('mask_thresholds', 'thresholds')}_kernel"
            monkeypatch.setattr(ops, name, getattr(ops, own))
        for layer in ("linear", "conv2d"):
            for part in ("", "_input", "_weight", "_bias"):
                monkeypatch.setattr(
                    ops, f"masked_{layer}{part}", getattr(ops, f"_{layer}{part}_kernel")
                )

    def begin(op: str) -> None:
        monkeypatch.setattr(run, "KERNELS", {k: run.KERNELS[k][:1] for k in proof.NEEDED[op]})

    return begin


def drawn(device: torch.device, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator).to(device)


def step(device: torch.device, looks_ahead: bool = False) -> list[Tensor]:
    head = head_of([t.to(device) for t in tensors(make_head(ROWS, WIDTH, torch.float32))])
    hidden, kept = drawn(device, 3, WIDTH), 3 + drawn(device, 2, ROWS)
    dz, adam = drawn(device, 1, ROWS), options_of(eps=1e-2)
    found = passes.step_rows(HeadStep(head, dz, hidden, kept, 0.02, adam, looks_ahead=looks_ahead))
    return [*found, *tensors(head)]


def with_gradients(call: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    out = call(*leaves)
    return [out, *torch.autograd.grad((out * out).sum(), leaves)]


def masked(device: torch.device) -> list[Tensor]:
    weights = drawn(device, 5, 7), drawn(device, 5)

    def call(z: Tensor, *weights: Tensor) -> Tensor:
        found = mask_weights(MaskRequest(weights, z, 30.0, (True, True), drawn(device, 40)))
        return torch.cat([*(p.flatten() for p in found.products), found.drift[None]])

    return with_gradients(call, drawn(device, 40), *weights)


def linear(device: torch.device) -> list[Tensor]:
    inputs = [drawn(device, *s) for s in ((3, 7), (5, 7), (5,), (5, 7), (5,))]
    return with_gradients(functional.masked_linear, *inputs)


def conv2d(device: torch.device) -> list[Tensor]:
    inputs = [drawn(device, *s) for s in ((2, 3, 6, 6), (4, 3, 2, 2), (4,), (4, 3, 2, 2), (4,))]
    return with_gradients(functional.masked_conv2d, *inputs)


def largest(device: torch.device) -> list[Tensor]:
    weights = drawn(device, 5, 7), drawn(device, 9)
    return with_gradients(
        lambda scores: torch.cat(
            [p.flatten() for p in top_k.top_k_weights(weights, scores, (11, 3))]
        ),
        drawn(device, 44),
    )


CALLS: dict[str, tuple[str, Callable[[torch.device], list[Tensor]]]] = {
    "head": ("step_runs_kernel", step),
    "step_ahead": ("_step_ahead_kernel", lambda device: step(device, looks_ahead=True)),
    "mask_threshold": (
        "_select_end_kernel",
        lambda device: [functional.mask_threshold(drawn(device, 77), 30.0)],
    ),
    "mask_weights": ("_mask_weights_backward_kernel", masked),
    "top_k": ("_top_k_forward_kernel", largest),
    "pack": ("_top_k_pack_kernel", lambda device: [pack(drawn(device, 77) > 0)]),
    "masked_linear": ("_masked_linear_weight_kernel", linear),
    "masked_conv2d": ("masked_conv2d_product_kernel", conv2d),
}


@pytest.mark.parametrize("op", CALLS)
def test_a_right_kernel_is_taken(
    op: str, begins: Callable[[str], None], device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel, call = CALLS[op]
    begins(op)
    # The fault is never reached: nothing but launches is noted.
    launches = plant(monkeypatch, kernel, "right")
    torch.manual_seed(0)
    call(device)
    checked = len(launches)
    assert checked
    torch.manual_seed(0)
    call(device)
    assert len(launches) > checked


@pytest.mark.parametrize("kind", ["wrong", "compile"])
@pytest.mark.parametrize("op", CALLS)
def test_a_faulty_kernel_is_left_out_and_the_operation_is_right(
    op: str,
    kind: str,
    begins: Callable[[str], None],
    device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kernel, call = CALLS[op]
    begins(op)
    torch.manual_seed(0)
    with functional.backend("reference"):
        right = call(device)
    launches = plant(monkeypatch, kernel, kind)
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match=f"PyTorch on CUDA runs .*{op}"):
        found = call(device)
    compare(found, right)
    launches.clear()
    torch.manual_seed(0)
    compare(call(device), right)
    assert not launches
    with (
        functional.backend("triton"),
        pytest.raises(ConfigError, match="self-check of its kernels"),
    ):
        call(device)


def compare(found: Sequence[Tensor], right: Sequence[Tensor]) -> None:
    for ours, expected in zip(found, right, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
