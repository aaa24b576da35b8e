"""What the masked linear kernels multiply in, and by which sizes they are chosen."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from tests.support.masked_linear_checks import by_kernels, check, some_layer
from tests.support.masked_op_checks import BRAIN, FLOAT, HALF, choose_first, measure, some

pytest.importorskip("triton")

from hypermask_fast.kernels.layers import linear as forward
from hypermask_fast.kernels.layers import linear_backward as backward
from hypermask_fast.kernels.layers.matmul import float32_products


@pytest.fixture
def _precision() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.usefixtures("_precision")
def test_float32_products_follow_torch(device: torch.device) -> None:
    for policy, expected in (("highest", "tf32x3"), ("high", "tf32"), ("medium", "bf16")):
        torch.set_float32_matmul_precision(policy)
        assert float32_products(FLOAT) == expected
        assert float32_products(BRAIN) == "tf32"
    layer = some_layer((5, 20, 40), threshold=False, bias="none", device=device)
    # Saturated: masks are 1, and nothing but the rounding of the operands is left.
    layer = layer._replace(weight_logits=torch.full_like(layer.weight_logits, 20.0))
    grad = some(5, 20).to(device)
    x, weight, dy = (t.to(BRAIN).double() for t in (layer.x, layer.weight, grad))
    found = by_kernels(layer, grad)[:3]
    for y, (a, b) in zip(found, ((x, weight.T), (dy, weight), (dy.T, x)), strict=True):
        # Products of two bfloat16 are exact in float32; at most 40 of them are added.
        assert ((y - a @ b).abs() <= 40 * 2**-24 * (a.abs() @ b.abs())).all()
    torch.set_float32_matmul_precision("highest")
    check(layer, grad)


@pytest.mark.gpu
@pytest.mark.usefixtures("_precision")
def test_operands_of_tf32_products_are_rounded_to_nearest(device: torch.device) -> None:
    torch.set_float32_matmul_precision("high")
    layer = some_layer((5, 20, 40), threshold=False, bias="none", device=device)
    layer = layer._replace(weight_logits=torch.full_like(layer.weight_logits, 20.0))
    grad = some(5, 20).to(device)

    def nearest(t: Tensor) -> Tensor:
        return ((t.view(torch.int32) + 0x1000) & -0x2000).view(FLOAT).double()

    x, weight, dy = (nearest(t) for t in (layer.x, layer.weight, grad))
    found = by_kernels(layer, grad)[:3]
    for y, (a, b) in zip(found, ((x, weight.T), (dy, weight), (dy.T, x)), strict=True):
        # Cut off instead, the operands would be off by 2^-11.
        assert ((y - a @ b).abs() <= 40 * 2**-22 * (a.abs() @ b.abs())).all()


def test_float32_products_follow_the_newer_setting() -> None:
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    try:
        for setting, products in (("tf32", "tf32"), ("ieee", "tf32x3"), ("none", "tf32x3")):
            matmul.fp32_precision = setting
            assert float32_products(FLOAT) == products
    finally:
        matmul.fp32_precision = before


def test_route_follows_the_measured_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {
        "masked_linear": (2.0, 3.0),
        "masked_linear_input": (2.0, 1.5),
        "masked_linear_weight": (2.0, 1.6),
    }
    asked = measure(monkeypatch, times)

    def route(**options: bool) -> str:
        gpu = torch.device("cuda", 0)
        return forward.masked_linear_route((2, 8, 48), (32, 48), BRAIN, gpu, **options)

    assert route() == "fused"
    along = {"rows": 16, "width": 32, "depth": 48, "bits": 16}
    assert asked["masked_linear"] == asked["masked_linear_weight"] == along
    assert asked["masked_linear_input"] == {**along, "width": 48, "depth": 32}
    times["masked_linear_weight"] = (2.0, 1.4)
    assert route() == "materialised"
    assert route(backward=False) == "fused"
    del times["masked_linear_input"]
    assert route() == "materialised"
    assert route(backward=False) == "fused"


def test_sizes_of_a_choice_are_those_of_the_route(
    monkeypatch: pytest.MonkeyPatch, device: torch.device
) -> None:
    kernels = ("masked_linear", "masked_linear_input", "masked_linear_weight")
    chosen = choose_first(monkeypatch, forward, backward)
    asked = measure(monkeypatch, dict.fromkeys(kernels, (1.0, 1.0)))
    layer = some_layer((3, 5, 7), HALF, device=device)
    by_kernels(layer, some(3, 5, dtype=HALF).to(device))
    forward.masked_linear_route((3, 7), (5, 7), HALF, device)
    assert chosen == asked
