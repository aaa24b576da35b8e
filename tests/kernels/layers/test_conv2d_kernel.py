"""The masked convolution's kernels against the reference in float64."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from hypermask_fast import reference
from tests.support.kernel_checks import assert_as_exact, poisoned, rounding_bound
from tests.support.masked_conv2d_checks import (
    KERNELS,
    bounds,
    by_autograd,
    by_kernels,
    check,
    every,
    full_precision,
    some_gradient,
    some_layer,
)
from tests.support.masked_op_checks import (
    BIAS,
    BRAIN,
    FLOAT,
    HALF,
    choose_first,
    double,
    measure,
    some,
)

pytest.importorskip("triton")

from hypermask_fast.kernels.layers import conv2d as forward
from hypermask_fast.kernels.layers import conv2d_backward as backward
from hypermask_fast.kernels.layers import conv2d_geometry
from hypermask_fast.kernels.tuning import Config

NCHW, LAST = (False,), (True,)
BOTH = (False, True)


@pytest.fixture(autouse=True)
def _full_precision() -> Iterator[None]:
    with full_precision():
        yield


@pytest.mark.parametrize(
    ("x_shape", "weight_shape", "options", "layouts"),
    [
        pytest.param((2, 4, 5, 6), (5, 4, 1, 1), {}, BOTH, id="1x1"),
        pytest.param((2, 3, 7, 6), (5, 3, 3, 3), {"padding": 1}, BOTH, id="3x3"),
        pytest.param((1, 5, 9, 7), (2, 5, 5, 3), {"padding": "same"}, LAST, id="5x3-same"),
        pytest.param((1, 3, 6, 7), (4, 3, 2, 4), {"padding": "same"}, NCHW, id="even-same"),
        pytest.param((2, 2, 5, 6), (3, 2, 3, 3), {"padding": "valid"}, LAST, id="valid"),
        pytest.param((2, 3, 8, 7), (4, 3, 3, 3), {"stride": 2, "padding": 1}, BOTH, id="stride"),
        pytest.param((1, 3, 9, 9), (4, 3, 1, 1), {"stride": 2}, LAST, id="stride-past-kernel"),
        pytest.param((2, 3, 7, 8), (4, 3, 3, 3), {"dilation": 2, "padding": 2}, NCHW, id="dilated"),
        pytest.param(
            (1, 3, 9, 8),
            (4, 3, 3, 2),
            {"stride": (3, 2), "padding": (0, 3), "dilation": (1, 2)},
            BOTH,
            id="axes-differ",
        ),
        pytest.param(
            (2, 2, 7, 7),
            (3, 2, 3, 3),
            {"stride": 2, "dilation": 3, "padding": 3},
            NCHW,
            id="stride-and-dilation",
        ),
        pytest.param(
            (2, 3, 5, 5), (2, 3, 3, 3), {"padding": "same", "dilation": 2}, LAST, id="dilated-same"
        ),
        pytest.param((2, 6, 5, 6), (4, 3, 3, 3), {"groups": 2, "padding": 1}, BOTH, id="groups"),
        pytest.param((2, 3, 6, 5), (6, 1, 3, 3), {"groups": 3, "stride": 2}, BOTH, id="depthwise"),
        pytest.param((2, 37, 5, 4), (35, 37, 3, 2), {"padding": 1}, BOTH, id="many-channels"),
        pytest.param(
            (2, 36, 5, 4),
            (40, 18, 2, 2),
            {"groups": 2, "stride": 2, "padding": 1},
            BOTH,
            id="groups-of-many",
        ),
        pytest.param((1, 1, 1, 1), (1, 1, 1, 1), {}, NCHW, id="ones"),
        pytest.param((3, 1, 5, 5), (1, 1, 3, 3), {"padding": (1,)}, NCHW, id="one-channel"),
        pytest.param((2, 3, 2, 2), (2, 3, 1, 1), {"padding": 2}, LAST, id="padding-past-kernel"),
    ],
)
def test_geometries(
    x_shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    options: dict[str, Any],
    layouts: tuple[bool, ...],
    device: torch.device,
) -> None:
    for last in layouts:
        check(some_layer(x_shape, weight_shape, last=last, device=device), **options)


@pytest.mark.parametrize(
    ("dtypes", "last"),
    [
        pytest.param((HALF,), False, id="float16"),
        pytest.param((BRAIN,), True, id="bfloat16"),
        pytest.param((BRAIN, BRAIN, BRAIN), False, id="bfloat16-logits"),
        pytest.param((BRAIN, FLOAT), False, id="autocast-bfloat16"),
        pytest.param((FLOAT, FLOAT, BRAIN), True, id="only-logits-bfloat16"),
    ],
)
def test_dtypes(dtypes: tuple[torch.dtype, ...], last: bool, device: torch.device) -> None:
    layer = some_layer((2, 5, 6, 7), (6, 5, 3, 3), *dtypes, last=last, device=device)
    check(layer, padding=1)


@pytest.mark.parametrize("bias", BIAS)
@pytest.mark.parametrize("threshold", [True, False], ids=["threshold", "dense"])
def test_bias_and_threshold(bias: str, threshold: bool, device: torch.device) -> None:
    shapes = ((2, 3, 5, 5), (4, 3, 3, 3))
    check(some_layer(*shapes, bias=bias, threshold=threshold, device=device))


@pytest.mark.parametrize(
    ("x_shape", "weight_shape"),
    [
        pytest.param((0, 3, 5, 5), (4, 3, 3, 3), id="no-images"),
        pytest.param((2, 3, 5, 5), (0, 3, 3, 3), id="no-outputs"),
    ],
)
def test_empty(
    x_shape: tuple[int, ...], weight_shape: tuple[int, ...], device: torch.device
) -> None:
    layer = some_layer(x_shape, weight_shape, device=device)
    grad = torch.zeros(x_shape[0], weight_shape[0], 3, 3, device=device)
    y, dx, *rest = by_kernels(layer, grad)
    assert y.shape == grad.shape
    assert dx.shape == x_shape
    for found, tensor in zip((dx, *rest), layer[:5], strict=True):
        assert torch.equal(found, torch.zeros_like(tensor))


def _named(config: Config) -> str:
    return "x".join(map(str, config.values()))


@pytest.mark.parametrize("config", forward.CONFIGS, ids=_named)
def test_shipped_configurations(config: Config, device: torch.device) -> None:
    layer = some_layer((2, 34, 5, 5), (66, 34, 1, 2), device=device)
    grad = some_gradient(layer)
    exact, allowed = by_autograd(double(layer), grad.double()), bounds(layer, grad)
    with every(config), poisoned():
        y = forward.masked_conv2d_forward(*layer)
        dx = forward.masked_conv2d_backward_input(grad, *layer[1::2][:3], layer.x.shape)
    assert_as_exact(y, exact[0], allowed[0])
    assert_as_exact(dx, exact[1], allowed[1])


@pytest.mark.parametrize("config", backward.CONFIGS, ids=_named)
def test_shipped_configurations_of_the_gradient(config: Config, device: torch.device) -> None:
    layer = some_layer((2, 34, 6, 9), (66, 34, 1, 2), BRAIN, last=True, device=device)
    grad = some_gradient(layer)
    exact, allowed = by_autograd(double(layer), grad.double()), bounds(layer, grad)
    with every(config), poisoned():
        dw, dz = backward.masked_conv2d_backward_weight(grad, layer.x, *layer[1::2][:3])
    assert_as_exact(dw, exact[2], allowed[2], BRAIN)
    assert_as_exact(dz, exact[4], allowed[4])


@pytest.mark.parametrize(
    ("programs", "last"),
    [
        pytest.param(2, False, id="one-part"),
        pytest.param(3, True, id="two-parts"),
        pytest.param(512, False, id="many-parts"),
    ],
)
def test_many_tiles_and_parts(
    programs: int, last: bool, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backward, "_PROGRAMS", programs)
    monkeypatch.setattr(backward, "_BIAS_POSITIONS", 16)
    tile = {"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_K": 16, "num_warps": 4, "num_stages": 2}
    layer = some_layer((3, 3, 7, 6), (17, 3, 1, 2), last=last, device=device)
    with every(tile):
        check(layer)


@pytest.mark.parametrize(
    ("rows", "tiles", "parts"),
    [
        pytest.param(32768, 1, (64, 512), id="few-tiles"),
        pytest.param(2048, 36, (160, 13), id="rounded-up"),
        pytest.param(2048, 600, (2048, 1), id="many-tiles"),
        pytest.param(1, 1, (16, 1), id="one-position"),
        pytest.param(0, 1, (0, 0), id="no-positions"),
    ],
)
def test_parts_of_a_sum(rows: int, tiles: int, parts: tuple[int, int]) -> None:
    assert backward._split(rows, tiles, 16) == parts


@pytest.mark.parametrize("last", [False, True], ids=["nchw", "channels-last"])
def test_more_parts_than_a_tile_holds(last: bool, device: torch.device) -> None:
    layer = some_layer((1, 5, 3, 3), (6, 5, 3, 2), threshold=False, last=last, device=device)
    parts = some(37, 6 * 5 * 3 * 2).to(device)
    stored = (6, 3, 2, 5) if last else (6, 5, 3, 2)

    def gradients(parts: Tensor, weight: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        g = parts.sum(0).view(stored)
        weight, z = weight.detach().requires_grad_(), z.detach().requires_grad_()
        masked = weight * reference.semi_binary_mask(z)
        return torch.autograd.grad(masked, (weight, z), g.permute(0, 3, 1, 2) if last else g)

    with poisoned():
        found = backward._gradients(parts, layer.weight, layer.weight_logits, None, last)
    given = [t.double() for t in (parts, layer.weight, layer.weight_logits)]
    of_weight, of_logits = gradients(*given)
    magnitudes = [t.abs() for t in given]
    size, _ = gradients(*magnitudes)
    _, steep = gradients(*magnitudes[:2], torch.full_like(given[2], 1e-30))
    assert_as_exact(found[0], of_weight, rounding_bound(size, 37))
    assert_as_exact(found[1], of_logits, rounding_bound(2 * steep, 37))


def test_two_runs_have_the_same_bits(device: torch.device) -> None:
    layer = some_layer((3, 5, 9, 9), (6, 5, 3, 3), device=device)
    grad = some_gradient(layer)
    runs = [by_kernels(layer, grad) for _ in range(2)]
    for first, second in zip(*runs, strict=True):
        assert torch.equal(first, second)


def test_values_on_the_threshold_stay(device: torch.device) -> None:
    """Saturated masks are all 1, of logits that differ: a threshold of 1 keeps them."""
    z = torch.tensor([12.0, -20.0, 9.5, 8.0, 0.0, 3.0], device=device)[None, :, None, None]
    x = torch.eye(6, device=device)[:, :, None, None]
    weight, one = torch.full_like(z, 2.0), torch.tensor(1.0, device=device)
    y = forward.masked_conv2d_forward(x, weight, None, z, None, one)
    assert y.flatten().tolist() == [2.0, 2.0, 2.0, 0.0, 0.0, 0.0]


def test_a_logit_that_is_not_a_number_stays_one(device: torch.device) -> None:
    layer = some_layer((1, 2, 4, 4), (3, 2, 3, 3), device=device)
    layer.weight_logits[1, 0, 2, 1] = torch.nan
    y = forward.masked_conv2d_forward(*layer)
    assert y.isnan().any(dim=(0, 2, 3)).tolist() == [False, True, False]
    assert y[:, 1].isnan().all()


def test_precision_is_that_of_cudnn() -> None:
    conv = torch.backends.cudnn.conv
    before = conv.fp32_precision
    try:
        for setting, products in (("tf32", "tf32"), ("ieee", "tf32x3"), ("none", "tf32x3")):
            conv.fp32_precision = setting
            assert conv2d_geometry.float32_products(FLOAT) == products
            # Of no effect: one kernel for all.
            assert {conv2d_geometry.float32_products(dtype) for dtype in (HALF, BRAIN)} == {"tf32"}
    finally:
        conv.fp32_precision = before


CUDA = torch.device("cuda", 0)


def _route(**changes: Any) -> str:
    arguments = {
        "x_shape": (32, 3, 32, 32),
        "weight_shape": (16, 3, 3, 3),
        "stride": 1,
        "padding": 1,
        "dilation": 1,
        "groups": 1,
        "dtype": FLOAT,
        "device": CUDA,
    }
    forward._route.cache_clear()
    return forward.masked_conv2d_route(**{**arguments, **changes})


def test_route_is_materialised_where_nothing_was_measured(device: torch.device) -> None:
    cpu = torch.device("cpu")
    assert _route(device=cpu) == "materialised"


def test_route_follows_the_measured_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {
        "masked_conv2d": (1.0, 2.0),
        "masked_conv2d_input": (3.0, 2.5),
        "masked_conv2d_weight": (3.0, 2.8),
    }
    asked = measure(monkeypatch, times)
    assert _route(stride=2, channels_last=True) == "fused"
    sizes = {"taps": 9, "groups": 1, "bits": 32, "layout": 2}
    y = {"positions": 32 * 16 * 16, "source": 3, "out": 16, **sizes}
    assert asked["masked_conv2d"] == asked["masked_conv2d_weight"] == y
    assert asked["masked_conv2d_input"] == {
        "positions": 32 * 32 * 32,
        "source": 16,
        "out": 3,
        **sizes,
    }
    times["masked_conv2d_weight"] = (3.5, 2.8)
    assert _route() == "materialised"
    assert _route(backward=False) == "fused"
    del times["masked_conv2d_input"]
    assert _route() == "materialised"
    assert _route(backward=False) == "fused"
    forward._route.cache_clear()


def test_sizes_of_a_choice_are_those_of_the_route(
    monkeypatch: pytest.MonkeyPatch, device: torch.device
) -> None:
    """A launch is tuned by the entry that its route is judged by."""
    chosen = choose_first(monkeypatch, forward, backward)
    asked = measure(monkeypatch, dict.fromkeys(KERNELS, (1.0, 2.0)))
    layer = some_layer((2, 4, 6, 5), (6, 2, 3, 3), HALF, last=True, device=device)
    options = {"stride": 2, "padding": 1, "groups": 2}
    by_kernels(layer, some_gradient(layer, **options).to(device), **options)
    shapes = {"x_shape": layer.x.shape, "weight_shape": layer.weight.shape}
    assert _route(**shapes, **options, dtype=HALF, channels_last=True) == "fused"
    forward._route.cache_clear()
    assert chosen == asked
